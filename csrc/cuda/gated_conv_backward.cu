// The block with its hidden activations in memory, and its gradient, as a chain of kernels over tiles of 64 frames.
//
// Products run in float32, or on the matrix units as TF32 where torch allows it and for 16-bit tensors, whose own
// numbers TF32 holds exactly.  Sums over frames are cut into fixed parts and added up in one order: no atomics.
#include "cuda/channels.h"
#include "cuda/tile_product.h"

namespace dyncp::cuda {
namespace {

constexpr int kRows = 64;
constexpr int kDepth = 64;
constexpr int kStride = kDepth + 4;
constexpr int kFrames = kColumns;
constexpr int kTileBytes = kRows * kStride * int(sizeof(float));
constexpr int kCountBytes = 64;

// Where shared memory goes: two operand tiles, the first of which later holds a result, and the lists.
struct Tiles {
  float* left;
  float* right;
  int* counts;
  uint16_t* order;
  __device__ explicit Tiles(unsigned char* shared)
      : left(reinterpret_cast<float*>(shared)),
        right(reinterpret_cast<float*>(shared + kTileBytes)),
        counts(reinterpret_cast<int*>(shared + 2 * kTileBytes)),
        order(reinterpret_cast<uint16_t*>(shared + 2 * kTileBytes + kCountBytes)) {}
};

int bytes_for(int listed) { return 2 * kTileBytes + kCountBytes + (listed * 2 + 15) / 16 * 16; }

// The frames of a block of threads, and its kRows of `rows` channels.  The blocks of a tile are neighbours in the grid
// and run at about the same time, so that what they read of the tile comes from memory once.
struct Tile {
  int64_t batch;
  int64_t first;
  int64_t last;
  int64_t index;  // of batch * tiles
  int start;
  __device__ Tile(const BlockCall& p, int rows) {
    const int64_t tiles = (p.frames + kFrames - 1) / kFrames;
    const int blocks = (rows + kRows - 1) / kRows;
    index = blockIdx.x / blocks;
    start = static_cast<int>(blockIdx.x % blocks) * kRows;
    batch = index / tiles;
    first = index % tiles * kFrames;
    last = first + kFrames < p.frames ? first + kFrames : p.frames;
  }
};

template <class T>
__device__ void multiply_float32(float (&total)[1][kColumnTiles][4], const BlockCall& p, const Tiles& tiles,
                                 const Lane& lane) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (!p.allow_tf32) {
      multiply_tiles<ExactProduct, 1>(total, tiles.left, kStride, tiles.right, kStride, kDepth, lane);
      return;
    }
  }
  multiply_tiles<Tf32Product, 1>(total, tiles.left, kStride, tiles.right, kStride, kDepth, lane);
}

// Adds up left(row, k) * right(frame, k) for a tile of 64 rows and 64 frames; all threads call it.
template <class T, class Left, class Right>
__device__ void add_products(float (&total)[1][kColumnTiles][4], const BlockCall& p, int depth, const Tiles& tiles,
                             const Lane& lane, Left left, Right right) {
  for (int begin = 0; begin < depth; begin += kDepth) {
    for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) {
      const int k = i % kDepth;
      tiles.left[i / kDepth * kStride + k] = begin + k < depth ? left(i / kDepth, begin + k) : 0.0f;
    }
    for (int i = threadIdx.x; i < kFrames * kDepth; i += kThreads) {
      const int k = i / kFrames;
      tiles.right[i % kFrames * kStride + k] = begin + k < depth ? right(i % kFrames, begin + k) : 0.0f;
    }
    __syncthreads();
    multiply_float32<T>(total, p, tiles, lane);
    __syncthreads();
  }
}

// Calls body(row, column, value) for every result, neighbouring threads at neighbouring columns.  The results pass
// through the left tile, whose item (row, column) belongs to the calling thread meanwhile.
template <class Body>
__device__ void for_each_result(const float (&total)[1][kColumnTiles][4], const Tiles& tiles, const Lane& lane,
                                Body body) {
  DYNCP_UNROLL
  for (int j = 0; j < kColumnTiles; ++j) {
    DYNCP_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = lane.warp_row * 16 + lane.g + 8 * (i / 2);
      const int column = (lane.warp_column * kColumnTiles + j) * 8 + 2 * lane.t + i % 2;
      tiles.left[row * kStride + column] = total[0][j][i];
    }
  }
  __syncthreads();
  DYNCP_NO_UNROLL
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int row = i / kColumns;
    const int column = i % kColumns;
    body(row, column, tiles.left[row * kStride + column]);
  }
}

template <class T>
__device__ int list_hidden(const BlockCall& p, bool skips, const Tile& tile, const Tiles& tiles) {
  if (skips && p.hidden_gate.data != nullptr)
    return list_open<T>(p.hidden_gate, p.hidden, tile.batch, tile.first, tile.last, tiles.order, tiles.counts);
  for (int i = threadIdx.x; i < p.hidden; i += kThreads) tiles.order[i] = static_cast<uint16_t>(i);
  __syncthreads();
  return p.hidden;
}

template <class T>
__device__ float hidden_gate_at(const BlockCall& p, int64_t batch, int64_t channel, int64_t frame) {
  return p.hidden_gate.data == nullptr ? 1.0f : gate_value<T>(p.hidden_gate, batch, channel, frame);
}

template <class T>
__device__ float slope_of(const void* slope) {
  return slope == nullptr ? 0.0f : load<T>(slope, 0);
}

// The first activation's input.
template <class T>
__device__ float input_of_first(const BlockCall& p, const Activations& act, int64_t batch, int64_t channel,
                                int64_t frame) {
  if (act.a != nullptr) return act.a[(batch * p.hidden + channel) * p.frames + frame];
  return load<T>(p.x, batch * p.x_batch_stride + channel * p.x_channel_stride + frame * p.x_frame_stride);
}

template <class T>
__device__ float first_activation(const BlockCall& p, float value) {
  return p.w_in == nullptr ? value : activate(value, slope_of<T>(p.slope_in), p.slope_in != nullptr);
}

// u at any frame, 0 outside the signal and behind a closed gate, where nothing is read.
template <class T>
__device__ float u_at(const BlockCall& p, const Activations& act, int64_t batch, int64_t channel, int64_t frame) {
  if (frame < 0 || frame >= p.frames) return 0.0f;
  const float gate = hidden_gate_at<T>(p, batch, channel, frame);
  if (gate == 0.0f) return 0.0f;
  return gate * first_activation<T>(p, input_of_first<T>(p, act, batch, channel, frame));
}

// The second activation's input.
template <class T>
__device__ float c_at(const BlockCall& p, const Activations& act, int64_t batch, int64_t channel, int64_t frame) {
  float value = p.b_dw != nullptr ? load<T>(p.b_dw, channel) : 0.0f;
  for (int tap = 0; tap < p.taps; ++tap)
    value +=
        load<T>(p.w_dw, channel * p.taps + tap) * u_at<T>(p, act, batch, channel, frame + tap * p.dilation - p.left);
  return value;
}

template <class T>
__device__ float grad_at(const Activations& act, int64_t batch, int64_t channel, int64_t frame) {
  return load<T>(act.grad,
                 batch * act.grad_batch_stride + channel * act.grad_channel_stride + frame * act.grad_frame_stride);
}

// Is any hidden channel open at the frame?  The list of a tile holds every channel that could be.
template <class T>
__device__ bool frame_is_open(const BlockCall& p, int64_t batch, int64_t frame, const uint16_t* order, int active) {
  if (p.hidden_gate.data == nullptr) return true;
  for (int i = 0; i < active; ++i)
    if (gate_value<T>(p.hidden_gate, batch, order[i], frame) != 0.0f) return true;
  return false;
}

template <class T>
__global__ void __launch_bounds__(kThreads) expand(BlockCall p, Activations act) {
  DYNCP_SHARED(shared);
  const Tiles tiles(shared);
  const Tile tile(p, p.hidden);
  const Lane lane;
  const int active = list_hidden<T>(p, act.skips, tile, tiles);
  const int start = tile.start;
  if (start >= active) return;
  float total[1][kColumnTiles][4] = {};
  add_products<T>(
      total, p, p.channels, tiles, lane,
      [&](int row, int k) {
        if (start + row >= active) return 0.0f;
        return load<T>(p.w_in, tiles.order[start + row] * p.w_in_row_stride + k * p.w_in_column_stride);
      },
      [&](int column, int k) {
        const int64_t frame = tile.first + column;
        if (frame >= tile.last) return 0.0f;
        return load<T>(p.x, tile.batch * p.x_batch_stride + k * p.x_channel_stride + frame * p.x_frame_stride);
      });
  for_each_result(total, tiles, lane, [&](int row, int column, float value) {
    const int64_t frame = tile.first + column;
    if (start + row >= active || frame >= tile.last) return;
    const int64_t channel = tiles.order[start + row];
    if (p.b_in != nullptr) value += load<T>(p.b_in, channel);
    act.a[(tile.batch * p.hidden + channel) * p.frames + frame] = value;
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) depthwise(BlockCall p, Activations act) {
  DYNCP_SHARED(shared);
  const Tiles tiles(shared);
  const Tile tile(p, p.hidden);
  const int active = list_hidden<T>(p, act.skips, tile, tiles);
  const int start = tile.start;
  for (int i = threadIdx.x; i < kRows * kFrames; i += kThreads) {
    const int64_t frame = tile.first + i % kFrames;
    if (start + i / kFrames >= active || frame >= tile.last) continue;
    const int64_t channel = tiles.order[start + i / kFrames];
    const float gate = hidden_gate_at<T>(p, tile.batch, channel, frame);
    float value = 0.0f;
    if (gate != 0.0f)
      value =
          gate * activate(c_at<T>(p, act, tile.batch, channel, frame), slope_of<T>(p.slope_dw), p.slope_dw != nullptr);
    act.z[(tile.batch * p.hidden + channel) * p.frames + frame] = value;
  }
}

// W_out z + b_out: the output, or its product with the gradient of the output, which is that of the output gate.
template <class T, bool kGateGradient>
__global__ void __launch_bounds__(kThreads) project(BlockCall p, Activations act, float* gate_gradient) {
  DYNCP_SHARED(shared);
  const Tiles tiles(shared);
  const Tile tile(p, p.out_channels);
  const Lane lane;
  const int active = list_hidden<T>(p, act.skips, tile, tiles);
  const int start = tile.start;
  const bool gated = !kGateGradient && p.out_gate.data != nullptr;
  // One thread for each output row, then one for each frame.
  int* row_open = reinterpret_cast<int*>(tiles.order + (p.hidden + 7) / 8 * 8);
  int* frame_open = row_open + kRows;
  if (threadIdx.x < kRows) {
    const int channel = start + threadIdx.x;
    row_open[threadIdx.x] =
        channel < p.out_channels && (!gated || is_open<T>(p.out_gate, tile.batch, channel, tile.first, tile.last));
  } else if (threadIdx.x < kRows + kFrames) {
    const int64_t frame = tile.first + threadIdx.x - kRows;
    frame_open[threadIdx.x - kRows] = frame < tile.last && frame_is_open<T>(p, tile.batch, frame, tiles.order, active);
  }
  __syncthreads();
  float total[1][kColumnTiles][4] = {};
  add_products<T>(
      total, p, active, tiles, lane,
      [&](int row, int k) {
        if (row_open[row] == 0) return 0.0f;
        return load<T>(p.w_out, (start + row) * p.w_out_row_stride + tiles.order[k] * p.w_out_column_stride);
      },
      [&](int column, int k) {
        const int64_t frame = tile.first + column;
        if (frame >= tile.last) return 0.0f;
        return act.z[(tile.batch * p.hidden + tiles.order[k]) * p.frames + frame];
      });
  for_each_result(total, tiles, lane, [&](int row, int column, float sum) {
    const int64_t frame = tile.first + column;
    const int64_t channel = start + row;
    if (channel >= p.out_channels || frame >= tile.last) return;
    float value = 0.0f;
    if (row_open[row] != 0 && frame_open[column] != 0) {
      const float gate = gated ? gate_value<T>(p.out_gate, tile.batch, channel, frame) : 1.0f;
      if (gate != 0.0f) value = gate * (sum + (p.b_out != nullptr ? load<T>(p.b_out, channel) : 0.0f));
    }
    const int64_t target = (tile.batch * p.out_channels + channel) * p.frames + frame;
    if constexpr (kGateGradient) {
      gate_gradient[target] = value * grad_at<T>(act, tile.batch, channel, frame);
    } else {
      if (p.residual)
        value += load<T>(p.x, tile.batch * p.x_batch_stride + channel * p.x_channel_stride + frame * p.x_frame_stride);
      static_cast<T*>(p.y)[target] = from_float<T>(value);
    }
  });
}

// From the gradient of y to those of z, the second activation's input, the hidden gate (its part through z), and sums.
// Two blocks at a time: with more, the registers of exact products would go through memory.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) hidden_gradient(BlockCall p, Activations act) {
  DYNCP_SHARED(shared);
  const Tiles tiles(shared);
  const Tile tile(p, p.hidden);
  const Lane lane;
  const int active = list_hidden<T>(p, act.skips, tile, tiles);
  const int start = tile.start;
  if (start >= active) return;
  int* frame_open = reinterpret_cast<int*>(tiles.order + (p.hidden + 7) / 8 * 8);
  int* out_open = frame_open + kFrames;
  if (threadIdx.x < kFrames) {
    const int64_t frame = tile.first + threadIdx.x;
    frame_open[threadIdx.x] = frame < tile.last && frame_is_open<T>(p, tile.batch, frame, tiles.order, active);
  }
  for (int channel = threadIdx.x; channel < p.out_channels; channel += kThreads)
    out_open[channel] =
        p.out_gate.data == nullptr || is_open<T>(p.out_gate, tile.batch, channel, tile.first, tile.last);
  __syncthreads();
  float total[1][kColumnTiles][4] = {};
  add_products<T>(
      total, p, p.out_channels, tiles, lane,
      [&](int row, int k) {
        if (start + row >= active || out_open[k] == 0) return 0.0f;
        return load<T>(p.w_out, k * p.w_out_row_stride + tiles.order[start + row] * p.w_out_column_stride);
      },
      [&](int column, int k) {
        if (frame_open[column] == 0) return 0.0f;
        const int64_t frame = tile.first + column;
        const float gate = p.out_gate.data == nullptr ? 1.0f : gate_value<T>(p.out_gate, tile.batch, k, frame);
        return gate == 0.0f ? 0.0f : gate * grad_at<T>(act, tile.batch, k, frame);
      });
  const float slope = slope_of<T>(p.slope_dw);
  for_each_result(total, tiles, lane, [&](int row, int column, float grad_z) {
    const int64_t frame = tile.first + column;
    float grad_c = 0.0f;
    float negative = 0.0f;
    if (start + row < active && frame < tile.last) {
      const int64_t channel = tiles.order[start + row];
      const int64_t target = (tile.batch * p.hidden + channel) * p.frames + frame;
      const float gate = hidden_gate_at<T>(p, tile.batch, channel, frame);
      float z = 0.0f;
      if (gate != 0.0f || act.grad_gate != nullptr) {
        const float c = c_at<T>(p, act, tile.batch, channel, frame);
        const float q = activate(c, slope, p.slope_dw != nullptr);
        if (act.grad_gate != nullptr) act.grad_gate[target] = grad_z * q;
        if (gate != 0.0f) {
          z = gate * q;
          grad_c = c > 0.0f ? gate * grad_z : slope * gate * grad_z;
          if (c <= 0.0f) negative = gate * grad_z * c;
        }
      }
      act.z[target] = z;
      act.grad_c[target] = grad_c;
    }
    tiles.left[row * kStride + column] = grad_c;
    tiles.right[row * kStride + column] = negative;
  });
  __syncthreads();
  // One thread for each row and each sum: the taps of w_dw, b_dw, slope_dw.
  const int64_t sum_size = p.batch * ((p.frames + kFrames - 1) / kFrames) * p.hidden;
  for (int i = threadIdx.x; i < kRows * (p.taps + 2); i += kThreads) {
    const int row = i % kRows;
    const int kind = i / kRows;
    if (start + row >= active) continue;
    const int64_t channel = tiles.order[start + row];
    float sum = 0.0f;
    for (int column = 0; tile.first + column < tile.last; ++column) {
      const float grad_c = tiles.left[row * kStride + column];
      if (kind < p.taps) {
        const int64_t frame = tile.first + column + kind * p.dilation - p.left;
        if (grad_c != 0.0f) sum += grad_c * u_at<T>(p, act, tile.batch, channel, frame);
      } else {
        sum += kind == p.taps ? grad_c : tiles.right[row * kStride + column];
      }
    }
    act.rows[kind * sum_size + tile.index * p.hidden + channel] = sum;
  }
}

// Back through the depthwise convolution, the gate and the first activation.
template <class T>
__global__ void __launch_bounds__(kThreads) expansion_gradient(BlockCall p, Activations act) {
  DYNCP_SHARED(shared);
  const Tiles tiles(shared);
  const Tile tile(p, p.hidden);
  const int active = list_hidden<T>(p, act.skips, tile, tiles);
  const int start = tile.start;
  if (start >= active) return;
  const float slope = slope_of<T>(p.slope_in);
  for (int i = threadIdx.x; i < kRows * kFrames; i += kThreads) {
    const int row = i / kFrames;
    const int column = i % kFrames;
    const int64_t frame = tile.first + column;
    float negative = 0.0f;
    if (start + row < active && frame < tile.last) {
      const int64_t channel = tiles.order[start + row];
      const int64_t base = (tile.batch * p.hidden + channel) * p.frames;
      const float gate = hidden_gate_at<T>(p, tile.batch, channel, frame);
      float grad_a = 0.0f;
      if (gate != 0.0f || act.grad_gate != nullptr) {
        float grad_u = 0.0f;
        for (int tap = 0; tap < p.taps; ++tap) {
          const int64_t user = frame + p.left - tap * p.dilation;
          if (user < 0 || user >= p.frames || hidden_gate_at<T>(p, tile.batch, channel, user) == 0.0f) continue;
          grad_u += load<T>(p.w_dw, channel * p.taps + tap) * act.grad_c[base + user];
        }
        const float a = input_of_first<T>(p, act, tile.batch, channel, frame);
        if (act.grad_gate != nullptr) act.grad_gate[base + frame] += grad_u * first_activation<T>(p, a);
        if (gate != 0.0f) {
          grad_a = gate * grad_u;
          if (p.w_in != nullptr && !(a > 0.0f)) {
            negative = grad_a * a;
            grad_a *= slope;
          }
        }
      }
      act.grad_a[base + frame] = grad_a;
    }
    tiles.left[row * kStride + column] = negative;
  }
  __syncthreads();
  if (threadIdx.x < kRows && start + static_cast<int>(threadIdx.x) < active) {
    float sum = 0.0f;
    for (int column = 0; column < kFrames; ++column) sum += tiles.left[threadIdx.x * kStride + column];
    const int64_t sum_size = p.batch * ((p.frames + kFrames - 1) / kFrames) * p.hidden;
    act.rows[(p.taps + 2) * sum_size + tile.index * p.hidden + tiles.order[start + threadIdx.x]] = sum;
  }
}

// W_in^T grad_a, or grad_a without an expansion, plus the gradient of y through the residual.
template <class T>
__global__ void __launch_bounds__(kThreads) input_gradient(BlockCall p, Activations act, T* result) {
  DYNCP_SHARED(shared);
  const Tiles tiles(shared);
  const Tile tile(p, p.channels);
  const Lane lane;
  const int start = tile.start;
  float total[1][kColumnTiles][4] = {};
  if (p.w_in != nullptr) {
    const int active = list_hidden<T>(p, act.skips, tile, tiles);
    add_products<T>(
        total, p, active, tiles, lane,
        [&](int row, int k) {
          if (start + row >= p.channels) return 0.0f;
          return load<T>(p.w_in, tiles.order[k] * p.w_in_row_stride + (start + row) * p.w_in_column_stride);
        },
        [&](int column, int k) {
          const int64_t frame = tile.first + column;
          if (frame >= tile.last) return 0.0f;
          return act.grad_a[(tile.batch * p.hidden + tiles.order[k]) * p.frames + frame];
        });
  }
  for_each_result(total, tiles, lane, [&](int row, int column, float value) {
    const int64_t frame = tile.first + column;
    const int64_t channel = start + row;
    if (channel >= p.channels || frame >= tile.last) return;
    const int64_t target = (tile.batch * p.channels + channel) * p.frames + frame;
    if (p.w_in == nullptr && hidden_gate_at<T>(p, tile.batch, channel, frame) != 0.0f) value = act.grad_a[target];
    if (p.residual) value += grad_at<T>(act, tile.batch, channel, frame);
    result[target] = from_float<T>(value);
  });
}

// grad_a x^T, or (m_o grad) z^T, over one part of the tiles: blocks of 64 rows, 64 columns, one part.
template <class T, bool kOfInput>
__global__ void __launch_bounds__(kThreads) weight_gradient(BlockCall p, Activations act, WeightGradient w) {
  DYNCP_SHARED(shared);
  const Tiles tiles(shared);
  const Lane lane;
  const int rows = kOfInput ? p.hidden : p.out_channels;
  const int columns = kOfInput ? p.channels : p.hidden;
  const int row_blocks = (rows + kRows - 1) / kRows;
  const int row_start = blockIdx.x % row_blocks * kRows;
  const int column_start = blockIdx.x / row_blocks * kColumns;
  const int64_t tiles_per_item = (p.frames + kFrames - 1) / kFrames;
  const int64_t all = p.batch * tiles_per_item;
  const int64_t size = (all + w.parts - 1) / w.parts;
  const int64_t begin = blockIdx.y * size;
  const int64_t end = begin + size < all ? begin + size : all;
  int* frame_open = reinterpret_cast<int*>(tiles.order + (p.hidden + 7) / 8 * 8);
  float total[1][kColumnTiles][4] = {};
  float sum = 0.0f;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / tiles_per_item;
    const int64_t first = index % tiles_per_item * kFrames;
    if (!kOfInput && p.hidden_gate.data != nullptr) {
      __syncthreads();
      const int64_t last = first + kFrames < p.frames ? first + kFrames : p.frames;
      const int active = list_open<T>(p.hidden_gate, p.hidden, batch, first, last, tiles.order, tiles.counts);
      if (threadIdx.x < kFrames)
        frame_open[threadIdx.x] =
            first + threadIdx.x < last && frame_is_open<T>(p, batch, first + threadIdx.x, tiles.order, active);
      __syncthreads();
    }
    const bool skips_frames = !kOfInput && p.hidden_gate.data != nullptr;
    for (int i = threadIdx.x; i < kRows * kFrames; i += kThreads) {
      const int k = i % kFrames;
      const int64_t frame = first + k;
      const int row = row_start + i / kFrames;
      const int column = column_start + i / kFrames;
      float left = 0.0f;
      float right = 0.0f;
      const bool counts = frame < p.frames && (!skips_frames || frame_open[k] != 0);
      if (counts && row < rows) {
        if constexpr (kOfInput) {
          if (hidden_gate_at<T>(p, batch, row, frame) != 0.0f)
            left = act.grad_a[(batch * p.hidden + row) * p.frames + frame];
        } else {
          const float gate = p.out_gate.data == nullptr ? 1.0f : gate_value<T>(p.out_gate, batch, row, frame);
          if (gate != 0.0f) left = gate * grad_at<T>(act, batch, row, frame);
        }
      }
      if (counts && column < columns) {
        if constexpr (kOfInput) {
          right = load<T>(p.x, batch * p.x_batch_stride + column * p.x_channel_stride + frame * p.x_frame_stride);
        } else if (hidden_gate_at<T>(p, batch, column, frame) != 0.0f) {
          right = act.z[(batch * p.hidden + column) * p.frames + frame];
        }
      }
      tiles.left[i / kFrames * kStride + k] = left;
      tiles.right[i / kFrames * kStride + k] = right;
    }
    __syncthreads();
    multiply_float32<T>(total, p, tiles, lane);
    if (w.row_sum != nullptr && threadIdx.x < kRows)
      for (int k = 0; k < kFrames; ++k) sum += tiles.left[threadIdx.x * kStride + k];
    __syncthreads();
  }
  const int64_t part = blockIdx.y;
  for_each_result(total, tiles, lane, [&](int row, int column, float value) {
    if (row_start + row < rows && column_start + column < columns)
      w.product[(part * rows + row_start + row) * columns + column_start + column] = value;
  });
  if (w.row_sum != nullptr && column_start == 0 && threadIdx.x < kRows &&
      row_start + static_cast<int>(threadIdx.x) < rows)
    w.row_sum[part * rows + row_start + threadIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_terms(const float* values, int64_t count, int64_t inner_stride, int64_t terms, int64_t outer_stride, T* result,
              int64_t offset, int64_t step) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int64_t j = 0; j < terms; ++j) sum += values[i * inner_stride + j * outer_stride];
  result[offset + i * step] = from_float<T>(sum);
}

dim3 grid_of(const BlockCall& p, int rows) {
  return dim3(static_cast<unsigned>(p.batch * tiles_of(p) * ((rows + kRows - 1) / kRows)));
}

// Shared memory for the list of hidden channels, and flags for frames and `further` rows.
int shared_of(const BlockCall& p, int further) { return bytes_for((p.hidden + 7) / 8 * 8) + (kFrames + further) * 4; }

// Calls body with a value of the storage type.
template <class Body>
const char* dispatch(const BlockCall& p, Body body) {
  switch (p.storage) {
    case Storage::float32:
      return body(float());
    case Storage::float16:
      return body(Half());
    default:
      return body(BFloat16());
  }
}

}  // namespace

const char* launch_expand(const BlockCall& p, const Activations& act, void* stream) {
  return dispatch(p, [&](auto type) {
    return launch(expand<decltype(type)>, grid_of(p, p.hidden), kThreads, shared_of(p, 0), stream, p, act);
  });
}

const char* launch_depthwise(const BlockCall& p, const Activations& act, void* stream) {
  return dispatch(p, [&](auto type) {
    return launch(depthwise<decltype(type)>, grid_of(p, p.hidden), kThreads, shared_of(p, 0), stream, p, act);
  });
}

const char* launch_project(const BlockCall& p, const Activations& act, void* stream) {
  return dispatch(p, [&](auto type) {
    return launch(project<decltype(type), false>, grid_of(p, p.out_channels), kThreads, shared_of(p, kRows), stream, p,
                  act, static_cast<float*>(nullptr));
  });
}

const char* launch_out_gate_gradient(const BlockCall& p, const Activations& act, float* result, void* stream) {
  return dispatch(p, [&](auto type) {
    return launch(project<decltype(type), true>, grid_of(p, p.out_channels), kThreads, shared_of(p, kRows), stream, p,
                  act, result);
  });
}

const char* launch_hidden_gradient(const BlockCall& p, const Activations& act, void* stream) {
  return dispatch(p, [&](auto type) {
    return launch(hidden_gradient<decltype(type)>, grid_of(p, p.hidden), kThreads, shared_of(p, p.out_channels), stream,
                  p, act);
  });
}

const char* launch_expansion_gradient(const BlockCall& p, const Activations& act, void* stream) {
  return dispatch(p, [&](auto type) {
    return launch(expansion_gradient<decltype(type)>, grid_of(p, p.hidden), kThreads, shared_of(p, 0), stream, p, act);
  });
}

const char* launch_input_gradient(const BlockCall& p, const Activations& act, void* result, void* stream) {
  return dispatch(p, [&](auto type) {
    using T = decltype(type);
    return launch(input_gradient<T>, grid_of(p, p.channels), kThreads, shared_of(p, 0), stream, p, act,
                  static_cast<T*>(result));
  });
}

const char* launch_weight_gradient(const BlockCall& p, const Activations& act, const WeightGradient& w, void* stream) {
  return dispatch(p, [&](auto type) {
    using T = decltype(type);
    const int rows = w.of_w_in ? p.hidden : p.out_channels;
    const int columns = w.of_w_in ? p.channels : p.hidden;
    // Without columns there still is the sum of the rows.
    const int column_blocks = columns > 0 ? (columns + kColumns - 1) / kColumns : 1;
    const dim3 grid((rows + kRows - 1) / kRows * column_blocks, w.parts);
    if (w.of_w_in) return launch(weight_gradient<T, true>, grid, kThreads, shared_of(p, 0), stream, p, act, w);
    return launch(weight_gradient<T, false>, grid, kThreads, shared_of(p, 0), stream, p, act, w);
  });
}

const char* launch_sum(Storage storage, const float* values, int64_t count, int64_t inner_stride, int64_t terms,
                       int64_t outer_stride, void* result, int64_t offset, int64_t step, void* stream) {
  if (count == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>((count + kThreads - 1) / kThreads));
  BlockCall call;
  call.storage = storage;
  return dispatch(call, [&](auto type) {
    using T = decltype(type);
    return launch(sum_terms<T>, grid, kThreads, 0, stream, values, count, inner_stride, terms, outer_stride,
                  static_cast<T*>(result), offset, step);
  });
}

}  // namespace dyncp::cuda
