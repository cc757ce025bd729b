// Table of the gate network's kernels, one per instruction set.
#pragma once

#include "core/channel_gate.h"
#include "core/isa.h"

namespace dyncp {

// The three phases run one after the other.  The weights of a 16-bit call are float already; the workspace is the same
// for all of them.
struct ChannelGateKernels {
  int64_t tile;  // frames of one tile
  int64_t (*workspace_bytes)(const ChannelGate& call);
  int64_t (*scratch_bytes)(const ChannelGate& call);
  // W1 x of tiles [begin, end), numbered over (batch, time).
  void (*reduce)(const ChannelGate& call, void* workspace, int64_t begin, int64_t end, void* scratch);
  // Pools rows [begin, end), numbered over (batch, width).
  void (*pool)(const ChannelGate& call, void* workspace, int64_t begin, int64_t end, void* scratch);
  // The decisions of words [begin, end), numbered over (batch, words of a row); the words of all gates, see GateWords.
  void (*decide)(const ChannelGate& call, const void* workspace, uint64_t* words, int64_t begin, int64_t end,
                 void* scratch);
};

}  // namespace dyncp

DYNCP_DECLARE_KERNELS(ChannelGateKernels, channel_gate_kernels)
