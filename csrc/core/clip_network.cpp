#include "core/clip_network.h"

#include <algorithm>

#include "core/pointwise.h"
#include "core/scratch.h"

namespace dyncp {
namespace {

// Rows of the activations between the layers begin on cache lines, and their distance is no power of two, so that a
// tile of many rows spreads over the sets of a cache.
int64_t row_stride(int64_t frames) { return (frames / 16 + 1) / 2 * 32 + 16; }

void decide(const ClipNetwork& network, const ClipBlock& block, const ClipCall& call, const float* x, int64_t stride,
            uint8_t* decisions, ParallelFor parallel_for) {
  if (block.w_reduce == nullptr) {
    for (int64_t i = 0; i < call.batch * network.gates(); ++i) {
      decisions[i] = block.b_expand[i % network.gates()] + static_cast<float>(call.shift) > 0;
    }
    return;
  }
  ChannelGate gate;
  gate.batch = call.batch;
  gate.channels = network.channels;
  gate.width = network.gate_width;
  gate.gates = network.gates();
  gate.frames = call.frames;
  gate.pooling = network.pooling;
  gate.window = network.window;
  gate.shift = call.shift;
  gate.x = x;
  gate.x_batch_stride = network.channels * stride;
  gate.x_channel_stride = stride;
  gate.w_reduce = block.w_reduce;
  gate.b_reduce = block.b_reduce;
  gate.w_expand = block.w_expand;
  gate.b_expand = block.b_expand;
  channel_gate(gate, decisions, parallel_for);
}

Gate site(const uint8_t* gates, int64_t first, int64_t count, int64_t of_item, int64_t frames) {
  Gate gate;
  if (count == 0) return gate;
  gate.data = gates + first * frames;
  gate.batch_stride = of_item * frames;
  gate.channel_stride = frames;
  gate.frame_stride = frames == 1 ? 0 : 1;
  return gate;
}

}  // namespace

void run_clips(const ClipNetwork& network, const ClipCall& call, ParallelFor parallel_for) {
  if (call.batch == 0) return;
  const int64_t stride = row_stride(call.frames), values = call.batch * network.channels * stride;
  const Scratch scratch(2 * values * static_cast<int64_t>(sizeof(float)));
  float* x = static_cast<float*>(scratch.data());
  float* y = x + values;

  Pointwise front;
  front.batch = call.batch;
  front.channels = network.bins;
  front.out_channels = network.channels;
  front.frames = call.frames;
  front.activation = Activation::relu;
  front.x = call.features;
  front.x_batch_stride = network.bins * call.frames;
  front.x_channel_stride = call.frames;
  front.y_channel_stride = stride;
  front.w = network.front_weight;
  front.w_row_stride = network.bins;
  front.b = network.front_bias;
  pointwise(front, x, parallel_for);

  const int64_t gate_frames = network.gate_frames(call.frames), of_item = network.gates();
  for (size_t n = 0; n < network.blocks.size(); ++n) {
    const ClipBlock& source = network.blocks[n];
    const int64_t place = static_cast<int64_t>(n) * call.batch * of_item * gate_frames;
    if (of_item > 0) decide(network, source, call, x, stride, call.decisions + place, parallel_for);
    const uint8_t* gates = (call.instead != nullptr ? call.instead : call.decisions) + place;

    GatedConv block;
    block.batch = call.batch;
    block.channels = block.out_channels = network.channels;
    block.hidden = network.hidden;
    block.frames = call.frames;
    block.taps = network.taps;
    block.dilation = source.dilation;
    block.causal = network.causal;
    block.x = x;
    block.x_batch_stride = network.channels * stride;
    block.x_channel_stride = block.y_channel_stride = stride;
    block.out_gate = site(gates, 0, network.out_gates, of_item, gate_frames);
    block.hidden_gate = site(gates, network.out_gates, network.hidden_gates, of_item, gate_frames);
    block.w_in = source.w_in;
    block.w_in_row_stride = network.channels;
    block.w_dw = source.w_dw;
    block.w_out = source.w_out;
    block.w_out_row_stride = network.hidden;
    block.w_out_column_stride = 1;
    block.b_in = source.b_in;
    block.b_dw = source.b_dw;
    block.b_out = source.b_out;
    block.slope_in = source.slope_in;
    block.slope_dw = source.slope_dw;
    gated_conv(block, y, parallel_for);
    std::swap(x, y);
  }

  Pointwise back = front;
  back.channels = network.channels;
  back.out_channels = network.bins;
  back.activation = Activation::sigmoid;
  back.x = x;
  back.x_batch_stride = network.channels * stride;
  back.x_channel_stride = stride;
  back.y_channel_stride = 0;
  back.w = network.back_weight;
  back.w_row_stride = network.channels;
  back.b = network.back_bias;
  pointwise(back, call.masks, parallel_for);
}

}  // namespace dyncp
