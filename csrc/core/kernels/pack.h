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

}  // namespace dyncp::DYNCP_ISA
