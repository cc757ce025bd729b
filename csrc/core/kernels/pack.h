// Copying rows of frames into the tile layout of the products.
#pragma once

#include "core/kernels/product.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

// Rows of `frames` values (at most kTile), row_stride apart, to tile[row][kTile]; whole vectors are written, zeros
// behind the last frame.
template <class T, class Storage>
DYNCP_INLINE void pack_tile(const Storage* source, int64_t row_stride, int64_t rows, int64_t frames, T* tile) {
  const int whole = static_cast<int>(frames / kLanes<T>);
  const int64_t rest = frames % kLanes<T>;
  for (int64_t row = 0; row < rows; ++row) {
    const Storage* from = source + row * row_stride;
    T* to = tile + row * kTile;
    for (int v = 0; v < whole; ++v) store(to + v * kLanes<T>, load(from + v * kLanes<T>));
    if (rest > 0) store(to + whole * kLanes<T>, load_first(from + whole * kLanes<T>, rest));
  }
}

// Asks for `count` values at p before they are needed.
template <class Value>
DYNCP_INLINE void prefetch(const Value* p, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Value);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(p + i);
  if (count > 0) __builtin_prefetch(p + count - 1);
}

// Asks for part `part` of `parts` of the rows that pack_tile will read.  Short pieces of many rows are no pattern that
// the processor would foresee.
template <class Storage>
DYNCP_INLINE void prefetch_tile(const Storage* source, int64_t row_stride, int64_t rows, int64_t frames, int64_t part,
                                int64_t parts) {
  for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
    prefetch(source + row * row_stride, frames);
  }
}

}  // namespace dyncp::DYNCP_ISA
