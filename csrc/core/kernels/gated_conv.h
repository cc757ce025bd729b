// Tables of the gated block's kernels, one per instruction set.
#pragma once

#include "core/gated_conv.h"
#include "core/isa.h"

namespace dyncp {

struct GatedConvKernels {
  int64_t tile;  // frames of one tile, the unit of work
  int64_t (*scratch_bytes)(const GatedConv& call);
  // Computes tiles [begin, end), numbered over (batch, time).  The weights of a 16-bit call are float already.
  void (*tiles)(const GatedConv& call, void* y, int64_t begin, int64_t end, void* scratch);
  // Copies count values of a 16-bit dtype to float.
  void (*widen)(DType dtype, const void* source, int64_t source_stride, float* target, int64_t target_stride,
                int64_t count);
  // Lists the channels that are open in some batch item at some frame.
  int64_t (*open_channels)(const GatedConv& call, const Gate& gate, int64_t channels, int32_t* list);
};

struct GatedConvStepKernels {
  int64_t (*scratch_bytes)(const GatedConv& call);
  // Computes batch items [begin, end).
  void (*items)(const GatedConv& call, const History& history, void* y, int64_t begin, int64_t end, void* scratch);
};

// The backward runs in phases; units of one phase are independent, and each phase needs the ones before it.
// Calls are float or double here.
struct GatedConvBackwardKernels {
  int phases;
  int64_t (*units)(const GatedConv& call, const GatedConvGradients& gradients, int phase);
  int64_t (*workspace_bytes)(const GatedConv& call, const GatedConvGradients& gradients);
  int64_t (*scratch_bytes)(const GatedConv& call);
  void (*run)(const GatedConv& call, const void* grad, const GatedConvGradients& gradients, void* workspace, int phase,
              int64_t begin, int64_t end, void* scratch);
  // Rounds count floats to a 16-bit dtype.
  void (*narrow)(DType dtype, const float* source, void* target, int64_t count);
};

}  // namespace dyncp

DYNCP_DECLARE_KERNELS(GatedConvKernels, gated_conv_kernels)
DYNCP_DECLARE_KERNELS(GatedConvStepKernels, gated_conv_step_kernels)
DYNCP_DECLARE_KERNELS(GatedConvBackwardKernels, gated_conv_backward_kernels)
