// One frame for many streams in one launch, each stream with its own gates and history: a block of threads takes one
// stream, or several that share the weights it reads.
#include "cuda/channels.h"

namespace dyncp::cuda {
namespace {

constexpr int kStepThreads = 256;
constexpr int kStepWarps = kStepThreads / 32;
constexpr int kMostStreams = 8;  // of one block

// Every lane gets the sum over the warp, added up in one fixed order.
__device__ float sum_over_warp(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

// Lane i gets the sum over the warp of values[i], added up in one fixed order.  Each lane keeps one half of its values
// and gives the other to the lane that keeps that one; kHalf is a constant so that the values stay in registers.
template <int kHalf = 16>
__device__ float sum_each_over_warp(float (&values)[32], int lane) {
  const bool upper = (lane & kHalf) != 0;
  DYNCP_UNROLL
  for (int i = 0; i < kHalf; ++i) {
    const float given = upper ? values[i] : values[i + kHalf];
    values[i] = (upper ? values[i + kHalf] : values[i]) + __shfl_xor_sync(kWholeWarp, given, kHalf);
  }
  if constexpr (kHalf > 1) return sum_each_over_warp<kHalf / 2>(values, lane);
  return values[0];
}

template <class T>
__device__ float gate_of(const Gate& gate, int64_t stream, int64_t channel) {
  return gate.data != nullptr ? gate_value<T>(gate, stream, channel, 0) : 1.0f;
}

// Writes the channels that are open for some stream of [first, last) to order, and returns how many there are.  Every
// thread of the block calls it, and waits for the others before it reads order.
template <class T>
__device__ int list_streams(const Gate& gate, int channels, int64_t first, int64_t last, uint16_t* order, int* counts) {
  if (gate.data != nullptr) {
    // To the list the streams are the frames of one item.
    Gate across = gate;
    across.batch_stride = 0;
    across.frame_stride = gate.batch_stride;
    return list_open<T>(across, channels, 0, first, last, order, counts);
  }
  for (int channel = threadIdx.x; channel < channels; channel += kStepThreads)
    order[channel] = static_cast<uint16_t>(channel);
  return channels;
}

// The depthwise convolution of a channel: u, its newest frame, and those of its history.
template <class T>
__device__ float depthwise(const BlockCall& p, const History& history, int64_t stream, int64_t channel, float u) {
  float value = load<T>(p.w_dw, channel * p.taps + p.taps - 1) * u;
  const int64_t row = stream * history.before_strides[0] + channel * history.before_strides[1];
  for (int tap = 0; tap + 1 < p.taps; ++tap)
    value += load<T>(p.w_dw, channel * p.taps + tap) *
             load<T>(history.before, row + tap * p.dilation * history.before_strides[2]);
  return value + (p.b_dw != nullptr ? load<T>(p.b_dw, channel) : 0.0f);
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

// The same by one thread, a few frames at a time so that their loads do not wait for each other.
template <class T>
__device__ void append_alone(const History& history, int64_t stream, int64_t row, int reach, float value) {
  constexpr int kAtOnce = 8;
  const T* before =
      static_cast<const T*>(history.before) + stream * history.before_strides[0] + row * history.before_strides[1];
  T* after = static_cast<T*>(history.after) + stream * history.after_strides[0] + row * history.after_strides[1];
  for (int start = 0; start < reach; start += kAtOnce) {
    T kept[kAtOnce];
    DYNCP_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int next = start + i + 1;
      kept[i] = next < reach ? before[next * history.before_strides[2]] : from_float<T>(value);
    }
    DYNCP_UNROLL
    for (int i = 0; i < kAtOnce; ++i)
      if (start + i < reach) after[(start + i) * history.after_strides[2]] = kept[i];
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
  const int active = list_streams<T>(p.hidden_gate, p.hidden, stream, stream + 1, order, counts);
  if (active < p.hidden)
    for (int channel = warp; channel < p.hidden; channel += kStepWarps)
      if (gate_of<T>(p.hidden_gate, stream, channel) == 0.0f) append<T>(history, stream, channel, p.reach, 0.0f, lane);
  __syncthreads();

  const float slope_in = p.slope_in != nullptr ? load<T>(p.slope_in, 0) : 0.0f;
  const float slope_dw = p.slope_dw != nullptr ? load<T>(p.slope_dw, 0) : 0.0f;
  for (int i = warp; i < active; i += kStepWarps) {
    const int64_t channel = order[i];
    const float gate = gate_of<T>(p.hidden_gate, stream, channel);
    float u = x[p.w_in == nullptr ? channel : 0];
    if (p.w_in != nullptr) {
      float part = 0.0f;
      for (int column = lane; column < p.channels; column += 32)
        part += load<T>(p.w_in, channel * p.w_in_row_stride + column * p.w_in_column_stride) * x[column];
      u = sum_over_warp(part) + (p.b_in != nullptr ? load<T>(p.b_in, channel) : 0.0f);
      u = activate(u, slope_in, p.slope_in != nullptr);
    }
    u *= gate;
    const float value = depthwise<T>(p, history, stream, channel, u);
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
    const float gate = gate_of<T>(p.out_gate, stream, channel);
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

// Products of 32 / kStreams rows of a weight with the vectors of kStreams streams.  A lane gets that of row
// lane / kStreams with stream lane % kStreams.  Each weight is read once for all streams, each item of a vector once
// for all rows.  kListed: the items are those of the columns in order, and a stream takes only those open to it.
template <class T, int kStreams, bool kListed>
__device__ float products(const void* weight, const int64_t (&rows)[32 / kStreams], int64_t column_stride,
                          const uint16_t* order, const uint8_t* open, int depth, const float* vectors,
                          int vector_stride, int lane) {
  constexpr int kRows = 32 / kStreams;
  float sums[32] = {};
  for (int i = lane; i < depth; i += 32) {
    const int64_t column = (kListed ? order[i] : i) * column_stride;
    const unsigned open_to = kListed ? open[i] : ~0u;
    float w[kRows];
    DYNCP_UNROLL
    for (int row = 0; row < kRows; ++row) w[row] = load<T>(weight, rows[row] + column);
    DYNCP_UNROLL
    for (int s = 0; s < kStreams; ++s) {
      const float item = vectors[s * vector_stride + i];
      if ((open_to >> s & 1u) == 0) continue;
      DYNCP_UNROLL
      for (int row = 0; row < kRows; ++row) sums[row * kStreams + s] += w[row] * item;
    }
  }
  return sum_each_over_warp(sums, lane);
}

// kStreams streams in one block.  It goes through the channels that are open for some of them; what belongs to a
// channel that is closed for a stream is selected away for that stream alone.
template <class T, int kStreams>
__global__ void __launch_bounds__(kStepThreads) step_together(BlockCall p, History history) {
  constexpr int kRows = 32 / kStreams;
  DYNCP_SHARED(shared);
  auto* x = reinterpret_cast<float*>(shared);  // [kStreams][channels]
  auto* z = x + kStreams * p.channels;         // [kStreams][hidden], of the open channels in the order of the list
  auto* counts = reinterpret_cast<int*>(z + kStreams * p.hidden);
  auto* order = reinterpret_cast<uint16_t*>(counts + kStepWarps);
  auto* out_order = order + p.hidden;
  auto* open = reinterpret_cast<uint8_t*>(out_order + p.out_channels);  // a bit for each stream, of listed channels

  const int64_t first = static_cast<int64_t>(blockIdx.x) * kStreams;
  const int streams = p.batch - first < kStreams ? static_cast<int>(p.batch - first) : kStreams;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // Which of its warp's products belongs to this lane.
  const int own_row = lane / kStreams;
  const int own_stream = lane % kStreams;

  for (int s = 0; s < kStreams; ++s)
    for (int channel = threadIdx.x; channel < p.channels; channel += kStepThreads)
      x[s * p.channels + channel] =
          s < streams ? load<T>(p.x, (first + s) * p.x_batch_stride + channel * p.x_channel_stride) : 0.0f;
  const int active = list_streams<T>(p.hidden_gate, p.hidden, first, first + streams, order, counts);
  const int out_active = list_streams<T>(p.out_gate, p.out_channels, first, first + streams, out_order, counts);
  if (p.hidden_gate.data != nullptr)
    for (int s = 0; s < streams; ++s)
      for (int channel = threadIdx.x; channel < p.hidden; channel += kStepThreads)
        if (gate_of<T>(p.hidden_gate, first + s, channel) == 0.0f)
          append_alone<T>(history, first + s, channel, p.reach, 0.0f);
  __syncthreads();
  for (int i = threadIdx.x; i < active; i += kStepThreads) {
    unsigned open_to = 0;
    for (int s = 0; s < streams; ++s)
      if (gate_of<T>(p.hidden_gate, first + s, order[i]) != 0.0f) open_to |= 1u << s;
    open[i] = static_cast<uint8_t>(open_to);
  }

  const float slope_in = p.slope_in != nullptr ? load<T>(p.slope_in, 0) : 0.0f;
  const float slope_dw = p.slope_dw != nullptr ? load<T>(p.slope_dw, 0) : 0.0f;
  for (int start = warp * kRows; start < active; start += kStepWarps * kRows) {
    const int i = start + own_row;
    const int64_t channel = order[i < active ? i : start];
    float u = x[p.w_in == nullptr ? own_stream * p.channels + channel : 0];
    if (p.w_in != nullptr) {
      int64_t rows[kRows];  // those past the end are the first one again
      DYNCP_UNROLL
      for (int row = 0; row < kRows; ++row)
        rows[row] = order[start + row < active ? start + row : start] * p.w_in_row_stride;
      u = products<T, kStreams, false>(p.w_in, rows, p.w_in_column_stride, nullptr, nullptr, p.channels, x, p.channels,
                                       lane);
      if (p.b_in != nullptr) u += load<T>(p.b_in, channel);
      u = activate(u, slope_in, p.slope_in != nullptr);
    }
    if (i >= active || own_stream >= streams) continue;
    const int64_t stream = first + own_stream;
    const float gate = gate_of<T>(p.hidden_gate, stream, channel);
    if (gate == 0.0f) continue;
    u *= gate;
    const float value = depthwise<T>(p, history, stream, channel, u);
    append_alone<T>(history, stream, channel, p.reach, u);
    z[own_stream * p.hidden + i] = gate * activate(value, slope_dw, p.slope_dw != nullptr);
  }
  __syncthreads();

  unsigned listed = 0;
  for (int i = lane; i < active; i += 32) listed |= open[i];
  unsigned opened = 0;  // streams with an open hidden channel
  DYNCP_UNROLL
  for (int s = 0; s < kStreams; ++s)
    if (__ballot_sync(kWholeWarp, (listed >> s & 1u) != 0) != 0) opened |= 1u << s;
  const auto write = [&](int s, int channel, float value) {
    if (p.residual) value += x[s * p.channels + channel];
    static_cast<T*>(p.y)[(first + s) * p.out_channels + channel] = from_float<T>(value);
  };
  const auto finish = [&](int s, int channel, float value) {
    const float gate = gate_of<T>(p.out_gate, first + s, channel);
    if (gate == 0.0f) return;
    value = gate * (value + (p.b_out != nullptr ? load<T>(p.b_out, channel) : 0.0f));
    write(s, channel, (opened >> s & 1u) != 0 ? value : 0.0f);
  };
  if (p.out_gate.data != nullptr)
    for (int s = 0; s < streams; ++s)
      for (int channel = threadIdx.x; channel < p.out_channels; channel += kStepThreads)
        if (gate_of<T>(p.out_gate, first + s, channel) == 0.0f) write(s, channel, 0.0f);
  if (p.w_out_row_stride != 1) {
    for (int start = warp * kRows; start < out_active; start += kStepWarps * kRows) {
      int64_t rows[kRows];
      DYNCP_UNROLL
      for (int row = 0; row < kRows; ++row)
        rows[row] = out_order[start + row < out_active ? start + row : start] * p.w_out_row_stride;
      const float value =
          products<T, kStreams, true>(p.w_out, rows, p.w_out_column_stride, order, open, active, z, p.hidden, lane);
      if (start + own_row < out_active && own_stream < streams) finish(own_stream, out_order[start + own_row], value);
    }
    return;
  }
  // Columns are contiguous: neighbouring threads take neighbouring rows.
  for (int j = threadIdx.x; j < out_active; j += kStepThreads) {
    const int channel = out_order[j];
    float sums[kStreams] = {};
    for (int i = 0; i < active; ++i) {
      const float w = load<T>(p.w_out, channel + order[i] * p.w_out_column_stride);
      DYNCP_UNROLL
      for (int s = 0; s < kStreams; ++s)
        if ((open[i] >> s & 1u) != 0) sums[s] += w * z[s * p.hidden + i];
    }
    DYNCP_UNROLL
    for (int s = 0; s < kStreams; ++s)
      if (s < streams) finish(s, channel, sums[s]);
  }
}

int64_t together_bytes(const BlockCall& p, int streams) {
  const int64_t floats = static_cast<int64_t>(streams) * (p.channels + p.hidden);
  return floats * 4 + kStepWarps * 4 + (static_cast<int64_t>(p.hidden) + p.out_channels) * 2 + p.hidden;
}

// Streams of one block.  With more blocks than processors, a processor reads the weights again for each of its blocks,
// so streams share a block until there is one for each processor at most.  Sharing further would leave processors idle.
// Two blocks must fit into the shared memory of a processor, so that one computes while the other waits for memory.
int streams_of_block(const BlockCall& p) {
  const DeviceLimits limits = device_limits();
  int streams = 1;
  while (streams < kMostStreams && (p.batch + streams - 1) / streams > limits.processors &&
         together_bytes(p, 2 * streams) <= limits.shared / 2)
    streams *= 2;
  return streams;
}

template <class T, int kStreams>
const char* launch_together(const BlockCall& p, const History& history, void* stream) {
  const dim3 grid(static_cast<unsigned>((p.batch + kStreams - 1) / kStreams));
  const int shared = static_cast<int>(together_bytes(p, kStreams));
  return launch(step_together<T, kStreams>, grid, kStepThreads, shared, stream, p, history);
}

template <class T>
const char* launch_step(const BlockCall& p, const History& history, void* stream) {
  switch (streams_of_block(p)) {
    case 8:
      return launch_together<T, 8>(p, history, stream);
    case 4:
      return launch_together<T, 4>(p, history, stream);
    case 2:
      return launch_together<T, 2>(p, history, stream);
    default: {
      const int shared = (p.channels + p.hidden) * 4 + kStepWarps * 4 + (p.hidden * 2 + 15) / 16 * 16;
      return launch(step<T>, dim3(static_cast<unsigned>(p.batch)), kStepThreads, shared, stream, p, history);
    }
  }
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
