// Frames or hops as plain functions, which csrc/python/frame_call.cpp calls with the memory of tensors.
//
// `packed` and `state` are a model and the state of an engine, of one stream or of some in step; `shape` is that of
// `values` and of the output.  All return 1, or 0 when nothing was done: then the op of stream_ops.cpp says what is
// wrong.
#include <algorithm>
#include <cstring>
#include <exception>

#include "core/dyncp.h"
#include "core/stream_model.h"
#include "torch/stream_batch.h"

namespace {

using dyncp::binding::Shape;
using dyncp::binding::StreamBatch;

// Counts the frames of the values, and steps or enhances them.
int call(int64_t (StreamBatch::*count)(Shape) const,
         void (StreamBatch::*run)(const float*, int64_t, float*, uint8_t*) const, const void* packed, void* state,
         Shape state_shape, const float* values, Shape shape, double shift, float* results) {
  try {
    const StreamBatch batch(*static_cast<const dyncp::PackedHeader*>(packed), state, state_shape, shift);
    const int64_t frames = (batch.*count)(shape);
    if (frames >= 0) (batch.*run)(values, frames, results, nullptr);
    return frames >= 0;
  } catch (const std::exception&) {
    return 0;
  }
}

// Whether all are numbers of at most kLoudestSample.
bool are_in_range(const float* values, int64_t count) {
  constexpr int32_t kMagnitude = 0x7fffffff;
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    most = std::max(most, bits & kMagnitude);
  }
  int32_t loudest;
  std::memcpy(&loudest, &dyncp::kLoudestSample, sizeof(loudest));
  return most <= loudest;
}

}  // namespace

extern "C" DYNCP_API int dyncp_call_step(const void* packed, void* state, Shape state_shape, const float* values,
                                         Shape shape, double shift, float* mask) {
  return call(&StreamBatch::frames_of, &StreamBatch::step, packed, state, state_shape, values, shape, shift, mask);
}

extern "C" DYNCP_API int dyncp_call_enhance(const void* packed, void* state, Shape state_shape, const float* values,
                                            Shape shape, double shift, float* enhanced) {
  return call(&StreamBatch::hops_of, &StreamBatch::enhance, packed, state, state_shape, values, shape, shift, enhanced);
}

// The same for samples from outside: those in range.  With a state (1, bytes) they may be (count), too.
extern "C" DYNCP_API int dyncp_call_enhance_finite(const void* packed, void* state, Shape state_shape,
                                                   const float* values, Shape shape, double shift, float* enhanced) {
  int64_t count = 1;
  for (int64_t i = 0; i < shape.dims; ++i) count *= shape[i];
  const int64_t of_one_stream[] = {1, count};
  if (state_shape.dims == 2 && shape.dims == 1) shape = {of_one_stream, 2};
  if (!are_in_range(values, count)) return 0;
  return dyncp_call_enhance(packed, state, state_shape, values, shape, shift, enhanced);
}
