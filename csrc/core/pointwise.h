// A 1x1 convolution with bias and activation, without torch: y = act(W x + b).
#pragma once

#include <cstdint>

#include "core/gated_conv.h"

namespace dyncp {

enum class Activation { none, relu, sigmoid };

// All strides count elements.
struct Pointwise {
  DType dtype = DType::float32;
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t out_channels = 0;
  int64_t frames = 0;
  Activation activation = Activation::none;

  const void* x = nullptr;  // (batch, channels, frames), frames contiguous
  int64_t x_batch_stride = 0;
  int64_t x_channel_stride = 0;
  int64_t x_tile_stride = 0;     // see GatedConv
  int64_t y_batch_stride = 0;    // of the output; 0: all channels
  int64_t y_channel_stride = 0;  // 0: frames
  int64_t y_tile_stride = 0;
  const void* w = nullptr;  // (out_channels, channels), columns contiguous
  int64_t w_row_stride = 0;
  const void* b = nullptr;  // may be null
};

// y: (batch, out_channels, frames), contiguous unless the call gives strides.  The result does not depend on how
// parallel_for partitions the work.
void pointwise(const Pointwise& call, void* y, ParallelFor parallel_for);

// Frames of a tile, of this and of the other ops.
int64_t pointwise_tile();

}  // namespace dyncp
