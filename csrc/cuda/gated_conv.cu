// The forward block in one kernel: a block of threads takes 64 frames of one item, the frames around its outputs
// included, and goes through the open hidden channels 64 at a time.  Only x, weights, gates and y touch memory.  Hidden
// activations are float32 until W_out multiplies them, in the storage type.
#include "cuda/channels.h"
#include "cuda/tile_product.h"

namespace dyncp::cuda {
namespace {

constexpr int kHidden = 64;  // hidden channels at a time
constexpr int kDepth = 64;   // input channels at a time
constexpr int kHiddenStride = kColumns + 2;

__host__ __device__ constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// Offsets of the tiles in shared memory, in bytes.  order comes last: it is as long as the hidden channels.
template <class Product, int kOut, bool kKeepsX>
struct Shared {
  using Item = typename Product::Item;
  static constexpr int kWeightStride = kDepth + Product::kPad;
  static constexpr int kOutStride = kHidden + Product::kPad;
  static constexpr int kInBytes = kHidden * kWeightStride * int(sizeof(Item));
  static constexpr int kOutBytes = kOut * kOutStride * int(sizeof(Item));
  static constexpr int kWeights = 0;
  static constexpr int kU = kWeights + larger(kInBytes, kOutBytes);
  static constexpr int kZ = kU + kHidden * kHiddenStride * int(sizeof(float));
  static constexpr int kCounts = kZ + kColumns * kOutStride * int(sizeof(Item));
  static constexpr int kOpened = kCounts + kThreads / 32 * int(sizeof(int));
  static constexpr int kOutOpen = kOpened + kThreads * int(sizeof(int));
  static constexpr int kX = round_up(kOutOpen + kOut * int(sizeof(int)), 16);

  // x stays for the whole tile where it fits, otherwise it is read again for each 64 hidden channels: so does every x
  // with kKeepsX false, for devices with less shared memory.
  static constexpr int kXLimit = 68 * 1024;
  static bool __host__ __device__ keeps_x(int channels) {
    return kKeepsX && kColumns * x_stride(channels, true) * int(sizeof(Item)) <= kXLimit;
  }
  static int __host__ __device__ x_stride(int channels, bool keeps) {
    return (keeps ? round_up(channels, kDepth) : kDepth) + Product::kPad;
  }
  static int __host__ __device__ order(int channels) {
    return kX + kColumns * x_stride(channels, keeps_x(channels)) * int(sizeof(Item));
  }
  static int bytes(int channels, int hidden) { return order(channels) + round_up(hidden * 2, 16); }
};

// x[first .. first + kDepth) of the tile's frames, as [frame][channel]; zeros outside.
template <class Product>
__device__ void load_x(const BlockCall& p, int64_t batch, int64_t start, int first, typename Product::Item* tile,
                       int stride) {
  const int column = threadIdx.x % kColumns;
  const int64_t frame = start + column;
  const bool inside = frame >= 0 && frame < p.frames;
  using T = typename Product::Item;
  const auto* x = static_cast<const T*>(p.x) + batch * p.x_batch_stride + frame * p.x_frame_stride;
  for (int k = threadIdx.x / kColumns; k < kDepth; k += kThreads / kColumns) {
    const int channel = first + k;
    T value = from_float<T>(0.0f);
    if (inside && channel < p.channels) value = x[channel * p.x_channel_stride];
    tile[column * stride + k] = value;
  }
}

// Rows order[first ...] of W_in, columns [begin, begin + kDepth); zeros past either end.
template <class Product>
__device__ void load_w_in(const BlockCall& p, const uint16_t* order, int first, int active, int begin,
                          typename Product::Item* tile, int stride) {
  using T = typename Product::Item;
  constexpr int kVector = 16 / int(sizeof(T));
  const auto* w = static_cast<const T*>(p.w_in);
  const bool whole = p.w_in_column_stride == 1 && p.w_in_row_stride % kVector == 0 &&
                     reinterpret_cast<uintptr_t>(w) % 16 == 0 && begin + kDepth <= p.channels;
  if (whole) {
    constexpr int kPieces = kDepth / kVector;
    for (int i = threadIdx.x; i < kHidden * kPieces; i += kThreads) {
      const int row = i / kPieces;
      const int column = i % kPieces * kVector;
      uint4 piece = {0, 0, 0, 0};
      if (first + row < active)
        piece = *reinterpret_cast<const uint4*>(w + order[first + row] * p.w_in_row_stride + begin + column);
      *reinterpret_cast<uint4*>(tile + row * stride + column) = piece;
    }
    return;
  }
  for (int i = threadIdx.x; i < kHidden * kDepth; i += kThreads) {
    const int row = i / kDepth;
    const int column = i % kDepth;
    T value = from_float<T>(0.0f);
    if (first + row < active && begin + column < p.channels)
      value = w[order[first + row] * p.w_in_row_stride + (begin + column) * p.w_in_column_stride];
    tile[row * stride + column] = value;
  }
}

// Columns order[first ...] of W_out, rows [begin, begin + kOut) that are open, as [row][column]; zeros elsewhere.
template <class Product, int kOut>
__device__ void load_w_out(const BlockCall& p, const uint16_t* order, int first, int active, int begin,
                           const int* out_open, typename Product::Item* tile, int stride) {
  using T = typename Product::Item;
  const auto* w = static_cast<const T*>(p.w_out);
  const bool columns_contiguous = p.w_out_row_stride == 1;  // neighbouring threads read along the contiguous axis
  for (int i = threadIdx.x; i < kOut * kHidden; i += kThreads) {
    const int row = columns_contiguous ? i % kOut : i / kHidden;
    const int column = columns_contiguous ? i / kOut : i % kHidden;
    T value = from_float<T>(0.0f);
    if (first + column < active && begin + row < p.out_channels && out_open[row] != 0)
      value = w[(begin + row) * p.w_out_row_stride + order[first + column] * p.w_out_column_stride];
    tile[row * stride + column] = value;
  }
}

// A device that has no room for x has none for a second block on a processor either, so that there a block of exact
// products may use more registers; a bound of one warp more than run leaves some of them.
template <class Product, bool kKeepsX>
constexpr bool kIsAlone = !kKeepsX && Product::kIsLong;
template <class Product, bool kKeepsX>
constexpr int kThreadBound = kIsAlone<Product, kKeepsX> ? kThreads + 32 : kThreads;

// kOut is a multiple of 64: output channels of one block.
template <class Product, int kOut, bool kKeepsX>
__global__ void __launch_bounds__(kThreadBound<Product, kKeepsX>, kIsAlone<Product, kKeepsX> ? 1 : 0)
    fused_block(BlockCall p, int64_t tiles) {
  using T = typename Product::Item;
  using Layout = Shared<Product, kOut, kKeepsX>;
  DYNCP_SHARED(shared);
  auto* weights_in = reinterpret_cast<T*>(shared + Layout::kWeights);
  auto* weights_out = reinterpret_cast<T*>(shared + Layout::kWeights);
  auto* u = reinterpret_cast<float*>(shared + Layout::kU);
  auto* z = reinterpret_cast<T*>(shared + Layout::kZ);
  auto* counts = reinterpret_cast<int*>(shared + Layout::kCounts);
  auto* opened = reinterpret_cast<int*>(shared + Layout::kOpened);
  auto* out_open = reinterpret_cast<int*>(shared + Layout::kOutOpen);
  auto* x_tile = reinterpret_cast<T*>(shared + Layout::kX);
  auto* order = reinterpret_cast<uint16_t*>(shared + Layout::order(p.channels));

  const Lane lane;
  // The blocks of output channels of a tile are neighbours in the grid: they read the same x at about the same time.
  const int out_blocks = (p.out_channels + kOut - 1) / kOut;
  const int64_t index = blockIdx.x / out_blocks;
  const int64_t batch = index / tiles;
  const int64_t span = kColumns - p.reach;
  const int64_t first_out = index % tiles * span;
  const int64_t last_out = first_out + span < p.frames ? first_out + span : p.frames;
  const int64_t start = first_out - p.left;  // column j of the tile is frame start + j
  const int out_begin = static_cast<int>(blockIdx.x % out_blocks) * kOut;

  int any_out = 0;
  for (int row = threadIdx.x; row < kOut; row += kThreads) {
    const int channel = out_begin + row;
    int open = channel < p.out_channels;
    if (open && p.out_gate.data != nullptr) open = is_open<T>(p.out_gate, batch, channel, first_out, last_out);
    out_open[row] = open;
    any_out |= open;
  }
  any_out = __syncthreads_or(any_out);
  int active = p.hidden;
  if (p.hidden_gate.data != nullptr) {
    active = list_open<T>(p.hidden_gate, p.hidden, batch, first_out, last_out, order, counts);
  } else {
    for (int channel = threadIdx.x; channel < p.hidden; channel += kThreads)
      order[channel] = static_cast<uint16_t>(channel);
  }
  if (any_out == 0) active = 0;

  const bool keeps_x = Layout::keeps_x(p.channels);
  const int x_stride = Layout::x_stride(p.channels, keeps_x);
  const int depth = round_up(p.channels, kDepth);
  if (p.w_in != nullptr && keeps_x && active > 0)
    for (int k = 0; k < depth; k += kDepth) load_x<Product>(p, batch, start, k, x_tile + k, x_stride);
  __syncthreads();

  const float slope_in = p.slope_in != nullptr ? load<T>(p.slope_in, 0) : 0.0f;
  const float slope_dw = p.slope_dw != nullptr ? load<T>(p.slope_dw, 0) : 0.0f;
  const auto* x = static_cast<const T*>(p.x) + batch * p.x_batch_stride;
  const int column = threadIdx.x % kColumns;
  const int64_t frame = start + column;
  const bool frame_inside = frame >= 0 && frame < p.frames;
  int frame_open = p.hidden_gate.data == nullptr;

  constexpr int kRowTiles = kOut / (16 * kWarpRows);
  float total[kRowTiles][kColumnTiles][4] = {};
  for (int first = 0; first < active; first += kHidden) {
    if (p.w_in != nullptr) {
      float a[1][kColumnTiles][4] = {};
      for (int k = 0; k < depth; k += kDepth) {
        load_w_in<Product>(p, order, first, active, k, weights_in, Layout::kWeightStride);
        if (!keeps_x) load_x<Product>(p, batch, start, k, x_tile, x_stride);
        __syncthreads();
        multiply_tiles<Product, 1>(a, weights_in, Layout::kWeightStride, x_tile + (keeps_x ? k : 0), x_stride, kDepth,
                                   lane);
        __syncthreads();
      }
      DYNCP_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = lane.warp_row * 16 + lane.g + 8 * half;
        const bool exists = first + row < active;
        const int channel = exists ? order[first + row] : 0;
        const float bias = exists && p.b_in != nullptr ? load<T>(p.b_in, channel) : 0.0f;
        DYNCP_UNROLL
        for (int j = 0; j < kColumnTiles; ++j) {
          DYNCP_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int at = (lane.warp_column * kColumnTiles + j) * 8 + 2 * lane.t + i;
            u[row * kHiddenStride + at] = activate(a[0][j][2 * half + i] + bias, slope_in, p.slope_in != nullptr);
          }
        }
      }
    } else {
      for (int row = threadIdx.x / kColumns; row < kHidden; row += kThreads / kColumns) {
        float value = 0.0f;
        if (first + row < active && frame_inside)
          value = to_float(x[order[first + row] * p.x_channel_stride + frame * p.x_frame_stride]);
        u[row * kHiddenStride + column] = value;
      }
    }
    __syncthreads();
    // The gate, and zeros outside the signal; one thread per column, 16 rows each.
    float gates[kHidden * kColumns / kThreads];
    DYNCP_UNROLL
    for (int i = 0; i < kHidden * kColumns / kThreads; ++i) {
      const int row = threadIdx.x / kColumns + i * (kThreads / kColumns);
      float gate = 0.0f;
      if (first + row < active && frame_inside)
        gate = p.hidden_gate.data == nullptr ? 1.0f : gate_value<T>(p.hidden_gate, batch, order[first + row], frame);
      gates[i] = gate;
      frame_open |= gate != 0.0f;
      float& value = u[row * kHiddenStride + column];
      value = gate != 0.0f ? gate * value : 0.0f;
    }
    __syncthreads();
    // Depthwise convolution; columns less than left or past the span read clamped columns and are never stored.
    DYNCP_UNROLL
    for (int i = 0; i < kHidden * kColumns / kThreads; ++i) {
      const int row = threadIdx.x / kColumns + i * (kThreads / kColumns);
      float value = 0.0f;
      if (gates[i] != 0.0f) {
        const int channel = order[first + row];
        for (int tap = 0; tap < p.taps; ++tap) {
          int source = column + tap * p.dilation - p.left;
          source = source < 0 ? 0 : source >= kColumns ? kColumns - 1 : source;
          value += load<T>(p.w_dw, static_cast<int64_t>(channel) * p.taps + tap) * u[row * kHiddenStride + source];
        }
        if (p.b_dw != nullptr) value += load<T>(p.b_dw, channel);
        value = gates[i] * activate(value, slope_dw, p.slope_dw != nullptr);
      }
      z[column * Layout::kOutStride + row] = from_float<T>(value);
    }
    load_w_out<Product, kOut>(p, order, first, active, out_begin, out_open, weights_out, Layout::kOutStride);
    __syncthreads();
    multiply_tiles<Product, kRowTiles>(total, weights_out, Layout::kOutStride, z, Layout::kOutStride, kHidden, lane);
    __syncthreads();
  }

  // A frame is open when one of the threads of its column saw an open gate.
  opened[threadIdx.x] = frame_open;
  __syncthreads();
  auto* y = static_cast<T*>(p.y) + batch * p.out_channels * p.frames;
  DYNCP_UNROLL
  for (int i = 0; i < kRowTiles; ++i) {
    DYNCP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = (lane.warp_row * kRowTiles + i) * 16 + lane.g + 8 * half;
      const int channel = out_begin + row;
      if (channel >= p.out_channels) continue;
      const bool computed = out_open[row] != 0;
      const float bias = computed && p.b_out != nullptr ? load<T>(p.b_out, channel) : 0.0f;
      DYNCP_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        DYNCP_UNROLL
        for (int k = 0; k < 2; ++k) {
          const int at = (lane.warp_column * kColumnTiles + j) * 8 + 2 * lane.t + k;
          const int64_t target = start + at;
          if (at < p.left || target < first_out || target >= last_out) continue;
          float value = 0.0f;
          const int is_open = opened[at] | opened[at + 64] | opened[at + 128] | opened[at + 192];
          if (computed && is_open != 0) {
            const float gate = p.out_gate.data == nullptr ? 1.0f : gate_value<T>(p.out_gate, batch, channel, target);
            if (gate != 0.0f) value = gate * (total[i][j][2 * half + k] + bias);
          }
          if (p.residual) value += to_float(x[channel * p.x_channel_stride + target * p.x_frame_stride]);
          y[channel * p.frames + target] = from_float<T>(value);
        }
      }
    }
  }
}

template <class Product, int kOut>
struct Tiles {
  template <bool kKeepsX>
  static int bytes(const BlockCall& p) {
    return Shared<Product, kOut, kKeepsX>::bytes(p.channels, p.hidden);
  }

  static const char* launch_largest(const BlockCall& p, void* stream) {
    return bytes<true>(p) <= device_limits().shared ? launch_tiles<true>(p, stream) : launch_tiles<false>(p, stream);
  }

  template <bool kKeepsX>
  static const char* launch_tiles(const BlockCall& p, void* stream) {
    const int64_t span = kColumns - p.reach;
    const int64_t tiles = (p.frames + span - 1) / span;
    const dim3 grid(static_cast<unsigned>(p.batch * tiles * ((p.out_channels + kOut - 1) / kOut)));
    return launch(fused_block<Product, kOut, kKeepsX>, grid, kThreads, bytes<kKeepsX>(p), stream, p, tiles);
  }
};

template <class T, class Run>
auto with_short_tiles(const BlockCall& p, Run run) {
  using Product = ShortProduct<T>;
  return p.out_channels <= 128 ? run(Tiles<Product, 128>()) : run(Tiles<Product, 256>());
}

// run(Tiles<...>()) with those of the call.
template <class Run>
auto with_tiles(const BlockCall& p, Run run) {
  switch (p.storage) {
    case Storage::float32:
      return p.allow_tf32 ? run(Tiles<Tf32Product, 128>()) : run(Tiles<ExactProduct, 128>());
    case Storage::float16:
      return with_short_tiles<Half>(p, run);
    default:
      return with_short_tiles<BFloat16>(p, run);
  }
}

}  // namespace

bool fits_one_kernel(const BlockCall& p) {
  return with_tiles(p, [&](auto tiles) { return tiles.template bytes<false>(p) <= device_limits().shared; });
}

const char* launch_gated_conv(const BlockCall& p, void* stream) {
  return with_tiles(p, [&](auto tiles) { return tiles.launch_largest(p, stream); });
}

}  // namespace dyncp::cuda
