// Memory that a frame will read, asked for beforehand.
//
// Between the frames of a live stream other work has the caches for 16 ms, and then the weights come from main memory.
// The processor by itself only runs ahead in what is read in order, which scattered rows of kept channels are not:
// these are asked for while others are multiplied, those of the next block by the gates of the frame before, which
// hardly ever change.  Measured from Python with caches that other data had filled: 23 % less time for a frame with
// hidden gates at 25 %; in a program without Python an EPYC showed no difference.  Where the weights are in the caches,
// asking for them would only cost time, so callers say when they probably are not.
#pragma once

#include "core/kernels/stream_vector.h"

namespace dyncp::DYNCP_ISA {

DYNCP_INLINE void ask_for(const void* memory, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(static_cast<const char*>(memory) + i, 0, 2);
}

// Listed rows, some of which may be asked for at a time.
struct RowsAhead {
  const char* rows = nullptr;
  int64_t stride = 0;
  const int32_t* list = nullptr;
  int count = 0;

  DYNCP_INLINE void ask(int begin, int end) const {
    for (int i = begin; i < end && i < count; ++i) ask_for(rows + list[i] * stride, stride);
  }
};

}  // namespace dyncp::DYNCP_ISA
