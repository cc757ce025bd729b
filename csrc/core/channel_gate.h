// The gate network of a block, without torch: m = (W2 relu(pool(W1 x) + b1) + b2 + shift > 0).
#pragma once

#include <cstdint>

#include "core/gated_conv.h"

namespace dyncp {

enum class Pooling { average, exponential, window, centred, global };

// All strides count elements.
struct ChannelGate {
  DType dtype = DType::float32;
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t width = 0;  // of the gate network
  int64_t gates = 0;
  int64_t frames = 0;
  Pooling pooling = Pooling::exponential;
  int64_t window = 1;
  double shift = 0;

  const void* x = nullptr;  // (batch, channels, frames), frames contiguous
  int64_t x_batch_stride = 0;
  int64_t x_channel_stride = 0;
  int64_t x_tile_stride = 0;       // see GatedConv
  const void* w_reduce = nullptr;  // (width, channels), contiguous
  const void* b_reduce = nullptr;  // biases may be null
  const void* w_expand = nullptr;  // (gates, width), contiguous
  const void* b_expand = nullptr;

  // Pooling over all frames decides once for all of them.
  int64_t gate_frames() const { return pooling == Pooling::global ? 1 : frames; }
  GateWords words() const { return {gates, gate_frames()}; }
};

// open: bytes of 0 or 1, (batch, gates, gate_frames()), contiguous.  The result does not depend on how parallel_for
// partitions the work.
void channel_gate(const ChannelGate& call, uint8_t* open, ParallelFor parallel_for);

// The same in the layout of call.words().
void channel_gate(const ChannelGate& call, uint64_t* words, ParallelFor parallel_for);

}  // namespace dyncp
