// The whole folded network on whole clips: front-end, gates and blocks, back-end, one after the other in one call.
#pragma once

#include <cstdint>
#include <vector>

#include "core/channel_gate.h"
#include "core/gated_conv.h"

namespace dyncp {

// Weights as row-major floats.
struct ClipBlock {
  int64_t dilation;
  const float *w_in, *b_in, *w_dw, *b_dw, *w_out, *b_out;  // (H, C) (H) (H, K) (H) (C, H) (C)
  const float *slope_in, *slope_dw;                        // one value each, or null for ReLU
  const float *w_reduce, *b_reduce, *w_expand, *b_expand;  // (d, C) (d) (G, d) (G); without w_reduce the scores (G)
};

struct ClipNetwork {
  int64_t bins, channels, hidden, taps;
  bool causal;
  int64_t hidden_gates, out_gates;  // hidden or 0, channels or 0
  int64_t gate_width;
  Pooling pooling;
  int64_t window;
  const float *front_weight, *front_bias;  // (C, bins) (C)
  const float *back_weight, *back_bias;    // (bins, C) (bins)
  std::vector<ClipBlock> blocks;

  int64_t gates() const { return out_gates + hidden_gates; }
  GateWords words(int64_t frames) const { return {gates(), gate_frames(frames)}; }
  // Frames of a decision: one where a gate decides once for the clip.
  int64_t gate_frames(int64_t frames) const {
    const bool once = pooling == Pooling::global || (!blocks.empty() && blocks[0].w_reduce == nullptr);
    return once ? 1 : frames;
  }
};

// All arrays are contiguous.
struct ClipCall {
  int64_t batch, frames;
  double shift;
  const float* features;    // (batch, bins, frames)
  float* masks;             // likewise
  uint64_t* decisions;      // (blocks, batch) of GateWords: what the gates decided, the output gates first
  const uint64_t* instead;  // likewise, used in place of the decisions; may be null
  int64_t threads = 1;      // that parallel_for has
};

void run_clips(const ClipNetwork& network, const ClipCall& call, ParallelFor parallel_for);

}  // namespace dyncp
