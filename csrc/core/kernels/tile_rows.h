// Where the rows of a tile of frames lie: one behind the other, or in tiles, see GatedConv.
#pragma once

#include <type_traits>

#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

template <class Value>
struct TileRows {
  Value* data;
  int64_t batch_stride, channel_stride, tile_stride;

  // A row from one frame on, to the end of its tile.
  DYNCP_INLINE Value* at(int64_t item, int64_t channel, int64_t frame) const {
    return data + item * batch_stride + frame / kTile * tile_stride + channel * channel_stride + frame % kTile;
  }
};

template <class Storage, class Call>
TileRows<const Storage> input_rows(const Call& call) {
  const int64_t tile_stride = call.x_tile_stride == 0 ? kTile : call.x_tile_stride;
  return {static_cast<const Storage*>(call.x), call.x_batch_stride, call.x_channel_stride, tile_stride};
}

template <class Storage, class Call>
TileRows<Storage> output_rows(const Call& call, void* y) {
  const int64_t channel_stride = call.y_channel_stride == 0 ? call.frames : call.y_channel_stride;
  const int64_t batch_stride = call.y_batch_stride == 0 ? call.out_channels * channel_stride : call.y_batch_stride;
  const int64_t tile_stride = call.y_tile_stride == 0 ? kTile : call.y_tile_stride;
  return {static_cast<Storage*>(y), batch_stride, channel_stride, tile_stride};
}

// The rows of a tile, from one frame on, as products take them: x itself where it lies so, with room for whole vectors
// behind the last frame, else a copy in `tile`.
template <class T, class Storage, class Call>
DYNCP_INLINE const T* packed_rows(const Call& call, const Storage* x, int64_t begin, int64_t frames, T* tile) {
  if constexpr (std::is_same<T, Storage>::value) {
    if (call.x_tile_stride != 0 && call.x_channel_stride == kTile && begin % kTile == 0) return x;
  }
  pack_tile<T>(x, call.x_channel_stride, call.channels, frames, tile);
  return tile;
}

}  // namespace dyncp::DYNCP_ISA
