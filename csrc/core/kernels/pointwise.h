// Table of the 1x1 convolution's kernels, one per instruction set.
#pragma once

#include "core/isa.h"
#include "core/pointwise.h"

namespace dyncp {

struct PointwiseKernels {
  int64_t tile;  // frames of one tile, the unit of work
  int64_t (*scratch_bytes)(const Pointwise& call);
  // Computes tiles [begin, end), numbered over (batch, time).  The weights of a 16-bit call are float already.
  void (*tiles)(const Pointwise& call, void* y, int64_t begin, int64_t end, void* scratch);
};

}  // namespace dyncp

DYNCP_DECLARE_KERNELS(PointwiseKernels, pointwise_kernels)
