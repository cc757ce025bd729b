// One frame for many streams in one launch: a block of threads for each stream, with its own gates and history.
#include "cuda/channels.h"

namespace dyncp::cuda {
namespace {

constexpr int kStepThreads = 256;
constexpr int kStepWarps = kStepThreads / 32;

// Every lane gets the sum over the warp, added up in one fixed order.
__device__ float sum_over_warp(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

// Moves a row of the history one frame on and appends value; all lanes of a warp call it, and the memory before and
// after may be the same: a lane writes only what has been read.
template <class T>
__device__ void append(const History& history, int64_t stream, int64_t row, int reach, float value, int lane) {
  const T* before =
      static_cast<const T*>(history.before) + stream * history.before_strides[0] + row * history.before_strides[1];
  T* after = static_cast<T*>(history.after) + stream * history.after_strides[0] + row * history.after_strides[1];
  for (int start = 0; start < reach; start += 32) {
    const int next = start + lane + 1;
    T kept = from_float<T>(value);
    if (next < reach) kept = before[next * history.before_strides[2]];
    __syncwarp();
    if (next - 1 < reach) after[(next - 1) * history.after_strides[2]] = kept;
    __syncwarp();
  }
}

template <class T>
__global__ void __launch_bounds__(kStepThreads) step(BlockCall p, History history) {
  DYNCP_SHARED(shared);
  auto* x = reinterpret_cast<float*>(shared);
  auto* z = x + p.channels;  // of the open channels, in the order of the list
  auto* counts = reinterpret_cast<int*>(z + p.hidden);
  auto* order = reinterpret_cast<uint16_t*>(counts + kStepWarps);

  const int64_t stream = blockIdx.x;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  for (int channel = threadIdx.x; channel < p.channels; channel += kStepThreads)
    x[channel] = load<T>(p.x, stream * p.x_batch_stride + channel * p.x_channel_stride);
  int active = p.hidden;
  if (p.hidden_gate.data != nullptr) {
    active = list_open<T>(p.hidden_gate, p.hidden, stream, 0, 1, order, counts);
    for (int channel = warp; channel < p.hidden; channel += kStepWarps)
      if (gate_value<T>(p.hidden_gate, stream, channel, 0) == 0.0f)
        append<T>(history, stream, channel, p.reach, 0.0f, lane);
  } else {
    for (int channel = threadIdx.x; channel < p.hidden; channel += kStepThreads)
      order[channel] = static_cast<uint16_t>(channel);
  }
  __syncthreads();

  const float slope_in = p.slope_in != nullptr ? load<T>(p.slope_in, 0) : 0.0f;
  const float slope_dw = p.slope_dw != nullptr ? load<T>(p.slope_dw, 0) : 0.0f;
  for (int i = warp; i < active; i += kStepWarps) {
    const int64_t channel = order[i];
    const float gate = p.hidden_gate.data != nullptr ? gate_value<T>(p.hidden_gate, stream, channel, 0) : 1.0f;
    float u = x[p.w_in == nullptr ? channel : 0];
    if (p.w_in != nullptr) {
      float part = 0.0f;
      for (int column = lane; column < p.channels; column += 32)
        part += load<T>(p.w_in, channel * p.w_in_row_stride + column * p.w_in_column_stride) * x[column];
      u = sum_over_warp(part) + (p.b_in != nullptr ? load<T>(p.b_in, channel) : 0.0f);
      u = activate(u, slope_in, p.slope_in != nullptr);
    }
    u *= gate;
    float value = load<T>(p.w_dw, channel * p.taps + p.taps - 1) * u;
    const int64_t row = stream * history.before_strides[0] + channel * history.before_strides[1];
    for (int tap = 0; tap + 1 < p.taps; ++tap)
      value += load<T>(p.w_dw, channel * p.taps + tap) *
               load<T>(history.before, row + tap * p.dilation * history.before_strides[2]);
    if (p.b_dw != nullptr) value += load<T>(p.b_dw, channel);
    // Every lane has read its taps before the row moves on.
    __syncwarp();
    append<T>(history, stream, channel, p.reach, u, lane);
    if (lane == 0) z[i] = gate * activate(value, slope_dw, p.slope_dw != nullptr);
  }
  __syncthreads();

  auto* y = static_cast<T*>(p.y) + stream * p.out_channels;
  const bool rows_contiguous = p.w_out_row_stride != 1;  // a warp for each row, otherwise a thread
  const int step_size = rows_contiguous ? kStepWarps : kStepThreads;
  for (int channel = rows_contiguous ? warp : threadIdx.x; channel < p.out_channels; channel += step_size) {
    const float gate = p.out_gate.data != nullptr ? gate_value<T>(p.out_gate, stream, channel, 0) : 1.0f;
    float value = 0.0f;
    if (gate != 0.0f && active > 0) {
      for (int i = rows_contiguous ? lane : 0; i < active; i += rows_contiguous ? 32 : 1)
        value += load<T>(p.w_out, channel * p.w_out_row_stride + order[i] * p.w_out_column_stride) * z[i];
      if (rows_contiguous) value = sum_over_warp(value);
      value = gate * (value + (p.b_out != nullptr ? load<T>(p.b_out, channel) : 0.0f));
    }
    if (p.residual) value += x[channel];
    if (!rows_contiguous || lane == 0) y[channel] = from_float<T>(value);
  }
}

template <class T>
const char* launch_step(const BlockCall& p, const History& history, void* stream) {
  const int shared = (p.channels + p.hidden) * 4 + kStepWarps * 4 + (p.hidden * 2 + 15) / 16 * 16;
  return launch(step<T>, dim3(static_cast<unsigned>(p.batch)), kStepThreads, shared, stream, p, history);
}

}  // namespace

const char* launch_gated_conv_step(const BlockCall& p, const History& history, void* stream) {
  if (p.channels + p.hidden > 16384) return "there must be at most 16384 channels, hidden ones included";
  switch (p.storage) {
    case Storage::float32:
      return launch_step<float>(p, history, stream);
    case Storage::float16:
      return launch_step<Half>(p, history, stream);
    default:
      return launch_step<BFloat16>(p, history, stream);
  }
}

}  // namespace dyncp::cuda
