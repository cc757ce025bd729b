// One frame through the network; the two transforms are in stream_transform.cpp.
#pragma once

#include "core/kernels/stream_vector.h"
#include "core/stream_kernels.h"

namespace dyncp::DYNCP_ISA {

void analyse(const PackedHeader& model, void* state, int place, const float* samples);
void synthesise(const PackedHeader& model, void* state, int place, float* samples);

}  // namespace dyncp::DYNCP_ISA
