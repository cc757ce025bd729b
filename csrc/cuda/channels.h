// Gates and lists of open channels, in one block.
#pragma once

#include "cuda/block_call.h"
#include "cuda/device.h"

namespace dyncp::cuda {

template <class T>
__device__ float load(const void* data, int64_t index) {
  return to_float(static_cast<const T*>(data)[index]);
}

template <class T>
__device__ float gate_value(const Gate& gate, int64_t batch, int64_t channel, int64_t frame) {
  const int64_t index = batch * gate.batch_stride + channel * gate.channel_stride + frame * gate.frame_stride;
  if (gate.is_bool) return static_cast<const uint8_t*>(gate.data)[index] != 0 ? 1.0f : 0.0f;
  return load<T>(gate.data, index);
}

// Is the channel open at some frame of [first, last)?  Frames are read eight at a time, so that the loads of a channel
// that stays closed do not wait for each other.
template <class T>
__device__ bool is_open(const Gate& gate, int64_t batch, int64_t channel, int64_t first, int64_t last) {
  constexpr int kAtOnce = 8;
  if (gate.frame_stride == 0) return gate_value<T>(gate, batch, channel, first) != 0.0f;
  for (int64_t frame = first; frame < last; frame += kAtOnce) {
    bool any = false;
    DYNCP_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t at = frame + i < last ? frame + i : last - 1;
      any |= gate_value<T>(gate, batch, channel, at) != 0.0f;
    }
    if (any) return true;
  }
  return false;
}

// Writes the open channels to order, in their order, and returns how many there are.  Every thread of the block calls
// it; counts is shared memory for one int per warp.
template <class T>
__device__ int list_open(const Gate& gate, int channels, int64_t batch, int64_t first, int64_t last, uint16_t* order,
                         int* counts) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32;
  int total = 0;
  for (int start = 0; start < channels; start += blockDim.x) {
    const int channel = start + threadIdx.x;
    const bool open = channel < channels && is_open<T>(gate, batch, channel, first, last);
    const unsigned vote = __ballot_sync(kWholeWarp, open);
    if (lane == 0) counts[warp] = __popc(vote);
    __syncthreads();
    int before = total;
    for (int i = 0; i < warps; ++i) {
      if (i < warp) before += counts[i];
      total += counts[i];
    }
    if (open) order[before + __popc(vote & ((1u << lane) - 1u))] = static_cast<uint16_t>(channel);
    __syncthreads();
  }
  return total;
}

// PReLU of the given slope; 0 is ReLU, for which NaN stays NaN.
__device__ inline float activate(float value, float slope, bool has_slope) {
  if (has_slope) return value > 0.0f ? value : slope * value;
  return value < 0.0f ? 0.0f : value;
}

}  // namespace dyncp::cuda
