// Kernels of the streaming engine, one table per instruction set (see isa.h).  No checks here: stream_engine.cpp calls
// them with a checked model and a state that belongs to it.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/stream_layout.h"

namespace dyncp {

// The gates of one block from their bits, one byte each, the output gates first.
inline void unpack_gates(const PackedHeader& model, const PackedBlock& block, const uint16_t* bits, uint8_t* gates) {
  const Geometry& g = model.geometry;
  const int outputs = g.channels * g.gates_out, first_hidden = model.channels_padded * g.gates_out;
  const auto is_open = [&](int place) -> uint8_t { return (bits[place / kPad] >> (place % kPad)) & 1; };
  for (int i = 0; i < outputs; ++i) gates[i] = is_open(i);
  if (!g.gates_hidden) return;
  const int32_t* order = at<int32_t>(&model, block.hidden_order);
  for (int i = 0; i < g.hidden; ++i) gates[outputs + order[i]] = is_open(first_hidden + i);
}

// A frame of a stream on its way through the network.
struct StreamFrame {
  void* state;
  const float* features;  // (bins)
  float* mask;            // (bins)
  uint8_t* gates;         // (blocks, gates), or null
  float shift;
};

struct StreamKernels {
  // At most kTileFrames frames, those of one stream side by side in their order.  A stream's last gates stay in its
  // state as bits.  Where the caches are cold, what the frames will read is asked for beforehand.
  void (*step)(const PackedHeader& model, const StreamFrame* frames, int count, bool are_cold);
  // One hop of samples to the spectrum and the features of one place, below kTileFrames, in the state.
  void (*analyse)(const PackedHeader& model, void* state, int place, const float* samples);
  // The spectrum of that place, scaled by its mask in the state, to one hop of samples.
  void (*synthesise)(const PackedHeader& model, void* state, int place, float* samples);
};

}  // namespace dyncp

DYNCP_DECLARE_STREAM_KERNELS(StreamKernels, stream_kernels)

namespace dyncp {

// Those of the active set.
inline const StreamKernels& active_stream_kernels() { return DYNCP_STREAM_KERNELS(StreamKernels, stream_kernels); }

}  // namespace dyncp
