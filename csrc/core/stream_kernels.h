// Kernels of the streaming engine, one table per instruction set (see isa.h).  No checks here: stream_engine.cpp calls
// them with a checked model and a state that belongs to it.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/stream_layout.h"

namespace dyncp {

struct StreamKernels {
  // One frame of features (bins) to a mask (bins); the gates stay in the state as bits.
  void (*step)(const PackedHeader& model, void* state, const float* features, float shift, float* mask);
  // One hop of samples to the spectrum and the features in the state.
  void (*analyse)(const PackedHeader& model, void* state, const float* samples);
  // The masked spectrum to one hop of samples.
  void (*synthesise)(const PackedHeader& model, void* state, const float* mask, float* samples);
};

}  // namespace dyncp

DYNCP_DECLARE_KERNELS(StreamKernels, stream_kernels)
