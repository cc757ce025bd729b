// Kernels of the gate network: both products in tiles of frames, the pooling between them along whole rows.
//
// Pooling and the first product are linear, so they may trade places: the few channels of the gate network are pooled
// instead of the many of the block.
#include "core/kernels/channel_gate.h"

#include <type_traits>

#include "core/kernels/gates.h"
#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/kernels/storage.h"
#include "core/kernels/tile_rows.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {
namespace {

template <class T, class Storage>
class Network {
 public:
  Network(const ChannelGate& call, void* workspace, Arena scratch) : call_(call) {
    // Whole tiles and whole words lie inside.
    width_ = (call.frames + kTile - 1) / kTile * kTile;
    width_ = width_ == 0 ? kFrames : (width_ + kFrames - 1) / kFrames * kFrames;
    reduced_ = static_cast<T*>(workspace);
    x_tile_ = scratch.take<T>(call.channels * kTile);
    hidden_ = scratch.take<T>(call.width * kFrames);
    sums_ = scratch.take<T>(kBlockRows * kFrames);
    padded_ = scratch.take<T>(is_windowed() ? call.frames + call.window + kTile : 0);
    bytes_ = scratch.used;
  }

  int64_t workspace_bytes() const { return call_.batch * call_.width * width_ * static_cast<int64_t>(sizeof(T)); }
  int64_t scratch_bytes() const { return bytes_; }

  void reduce(int64_t index) {
    const int64_t tiles = (call_.frames + kTile - 1) / kTile;
    const int64_t item = index / tiles;
    const int64_t begin = index % tiles * kTile;
    const int64_t frames = call_.frames - begin < kTile ? call_.frames - begin : kTile;
    const Storage* x = input_rows<Storage>(call_).at(item, 0, begin);
    const T* values = x_tile_;
    int64_t stride = kTile;
    if (std::is_same<T, Storage>::value && frames == kTile) {
      // So few rows of weights read a tile of x that packing it first does not pay.
      values = reinterpret_cast<const T*>(x);
      stride = call_.x_channel_stride;
    } else {
      pack_tile<T>(x, call_.x_channel_stride, call_.channels, frames, x_tile_);
    }
    const RowBlocks blocks(call_.width);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const int64_t first = blocks.begin(block);
      const T* w[kBlockRows];
      for (int r = 0; r < blocks.size(block); ++r) w[r] = weights(call_.w_reduce) + (first + r) * call_.channels;
      product_block<T>(blocks.size(block), w, nullptr, call_.channels, values, whole_vectors<T>(frames),
                       StoreSums<T>{row(item, first) + begin, width_}, stride);
    }
  }

  // Rows are pooled in groups whose recursions overlap.
  void pool(int64_t begin, int64_t end) {
    constexpr int kGroup = 8;
    for (; begin + kGroup <= end; begin += kGroup) pool_rows<kGroup>(begin);
    for (; begin < end; ++begin) pool_rows<1>(begin);
  }

  void decide(uint64_t* words, int64_t index) {
    const int64_t gate_frames = call_.gate_frames(), of_row = call_.words().of_row();
    const int64_t item = index / of_row, begin = index % of_row * kFrames;
    const int64_t frames = gate_frames - begin < kFrames ? gate_frames - begin : kFrames;
    // Whole words may be computed, whatever stands behind the last frame.
    const bool is_held = call_.width == kHeldWidth;
    const int vectors = is_held ? kFrames / kLanes<T> : whole_vectors<T>(frames);
    const uint64_t existing = lowest_bits(frames);
    for (int64_t k = 0; k < call_.width; ++k) {
      const T bias = call_.b_reduce == nullptr ? T(0) : weights(call_.b_reduce)[k];
      const T* pooled = row(item, k) + begin;
      for (int v = 0; v < vectors; ++v) {
        const bool exists = v * kLanes<T> < frames;
        const Vec<T> sum = exists ? load(pooled + v * kLanes<T>) + broadcast(bias) : zero<T>();
        store(hidden_ + k * kFrames + v * kLanes<T>, relu<T>(sum));
      }
    }
    words += index * call_.gates;
    if (is_held) return decide_held(existing, words);
    const RowBlocks blocks(call_.gates);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const int64_t first = blocks.begin(block);
      const T* w[kBlockRows];
      for (int r = 0; r < blocks.size(block); ++r) w[r] = weights(call_.w_expand) + (first + r) * call_.width;
      product_block<T>(blocks.size(block), w, nullptr, call_.width, hidden_, vectors, StoreSums<T>{sums_, kFrames},
                       kFrames);
      for (int r = 0; r < blocks.size(block); ++r) {
        const Vec<T> threshold = threshold_of(first + r);
        uint64_t open = 0;
        for (int v = 0; v < vectors; ++v) {
          open |= bits_greater<T>(load(sums_ + r * kFrames + v * kLanes<T>), threshold) << v * kLanes<T>;
        }
        words[first + r] = open & existing;
      }
    }
  }

 private:
  const T* weights(const void* p) const { return static_cast<const T*>(p); }
  T* row(int64_t item, int64_t k) const { return reduced_ + (item * call_.width + k) * width_; }
  // score + bias + shift > 0 where the score is greater.
  Vec<T> threshold_of(int64_t gate) const {
    const T bias = call_.b_expand == nullptr ? T(0) : weights(call_.b_expand)[gate];
    return broadcast<T>(-(bias + static_cast<T>(call_.shift)));
  }

  // Frames of a word.
  static constexpr int kFrames = GateWords::kFrames;

  // The usual width of a gate network: so few values that those of some frames stay in registers.
  static constexpr int kHeldWidth = 8;
  static constexpr int kHeldVectors = kVectorRegisters == 32 ? 2 : 1;

  // The decisions of a whole word: the same sums as those of the product, without memory in between.
  void decide_held(uint64_t existing, uint64_t* words) const {
    constexpr int kStep = kHeldVectors * kLanes<T>;
    for (int t = 0; t < kFrames; t += kStep) {
      Vec<T> held[kHeldWidth][kHeldVectors];
#pragma GCC unroll 8
      for (int k = 0; k < kHeldWidth; ++k) {
#pragma GCC unroll 2
        for (int v = 0; v < kHeldVectors; ++v) held[k][v] = load(hidden_ + k * kFrames + t + v * kLanes<T>);
      }
      for (int64_t gate = 0; gate < call_.gates; ++gate) {
        const T* w = weights(call_.w_expand) + gate * kHeldWidth;
        Vec<T> sums[kHeldVectors] = {};
#pragma GCC unroll 8
        for (int k = 0; k < kHeldWidth; ++k) {
          const Vec<T> weight = broadcast(w[k]);
#pragma GCC unroll 2
          for (int v = 0; v < kHeldVectors; ++v) sums[v] = weight * held[k][v] + sums[v];
        }
        const Vec<T> threshold = threshold_of(gate);
        uint64_t open = t == 0 ? 0 : words[gate];
#pragma GCC unroll 2
        for (int v = 0; v < kHeldVectors; ++v) open |= bits_greater<T>(sums[v], threshold) << (t + v * kLanes<T>);
        words[gate] = open & existing;
      }
    }
  }

  bool is_windowed() const { return call_.pooling == Pooling::window || call_.pooling == Pooling::centred; }

  template <int kRows>
  void pool_rows(int64_t first) {
    T* rows = reduced_ + first * width_;
    const int64_t frames = call_.frames;
    if (frames == 0) {
      for (int r = 0; r < kRows; ++r) rows[r * width_] = 0;
      return;
    }
    switch (call_.pooling) {
      case Pooling::exponential: {
        const T rate = T(2) / static_cast<T>(call_.window + 1);
        T pooled[kRows];
        for (int r = 0; r < kRows; ++r) pooled[r] = rows[r * width_];
        for (int64_t t = 0; t < frames; ++t) {
          for (int r = 0; r < kRows; ++r) {
            T& value = rows[r * width_ + t];
            // In a form that contracts in one way only, so that groups of all sizes give the same bits.
            value = pooled[r] = rate * (value - pooled[r]) + pooled[r];
          }
        }
        return;
      }
      case Pooling::average:
      case Pooling::global: {
        double sums[kRows] = {};
        for (int64_t t = 0; t < frames; ++t) {
          const double count = static_cast<double>(t + 1);
          for (int r = 0; r < kRows; ++r) {
            T& value = rows[r * width_ + t];
            sums[r] += value;
            if (call_.pooling == Pooling::average) value = static_cast<T>(sums[r] / count);
          }
        }
        if (call_.pooling == Pooling::average) return;
        for (int r = 0; r < kRows; ++r) rows[r * width_] = static_cast<T>(sums[r] / static_cast<double>(frames));
        return;
      }
      default:
        for (int r = 0; r < kRows; ++r) pool_window(rows + r * width_);
    }
  }

  // Mean over those frames of the window [t - left, t + right] that exist.
  void pool_window(T* values) {
    const int64_t left = call_.pooling == Pooling::window ? call_.window - 1 : call_.window / 2;
    const int64_t right = call_.window - 1 - left;
    const int64_t frames = call_.frames;
    __builtin_memset(padded_, 0, (frames + call_.window + kTile) * sizeof(T));
    __builtin_memcpy(padded_ + left, values, frames * sizeof(T));
    for (int64_t t = 0; t < frames; t += kLanes<T>) {
      Vec<T> sum = zero<T>();
      for (int64_t k = 0; k < call_.window; ++k) sum += load(padded_ + t + k);
      Vec<T> count = broadcast(static_cast<T>(call_.window));
      if (t < left || t + kLanes<T> + right > frames) {
        T lanes[kLanes<T>];
        for (int lane = 0; lane < kLanes<T>; ++lane) {
          const int64_t end = t + lane + right < frames ? t + lane + right : frames - 1;
          const int64_t begin = t + lane > left ? t + lane - left : 0;
          lanes[lane] = static_cast<T>(end - begin + 1);
        }
        count = load(lanes);
      }
      store(values + t, sum / count);
    }
  }

  const ChannelGate& call_;
  int64_t width_;  // of a row of reduced_
  T* reduced_;     // [batch][width][width_]: W1 x, then pooled
  T* x_tile_;      // [channels][kTile]
  T* hidden_;      // [width][kFrames]
  T* sums_;        // [kBlockRows][kFrames]
  T* padded_;      // one row with zeros around it
  int64_t bytes_;
};

template <class Run>
auto with_network(const ChannelGate& call, void* workspace, void* scratch, Run run) {
  return with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    Network<typename ComputeOf<Storage>::type, Storage> network(call, workspace, Arena{static_cast<char*>(scratch)});
    return run(network);
  });
}

int64_t workspace_bytes(const ChannelGate& call) {
  return with_network(call, nullptr, nullptr, [](auto& network) { return network.workspace_bytes(); });
}

int64_t scratch_bytes(const ChannelGate& call) {
  return with_network(call, nullptr, nullptr, [](auto& network) { return network.scratch_bytes(); });
}

void reduce(const ChannelGate& call, void* workspace, int64_t begin, int64_t end, void* scratch) {
  with_network(call, workspace, scratch, [&](auto& network) {
    for (int64_t index = begin; index < end; ++index) network.reduce(index);
  });
}

void pool(const ChannelGate& call, void* workspace, int64_t begin, int64_t end, void* scratch) {
  with_network(call, workspace, scratch, [&](auto& network) { network.pool(begin, end); });
}

void decide(const ChannelGate& call, const void* workspace, uint64_t* words, int64_t begin, int64_t end,
            void* scratch) {
  with_network(call, const_cast<void*>(workspace), scratch, [&](auto& network) {
    for (int64_t index = begin; index < end; ++index) network.decide(words, index);
  });
}

}  // namespace

const ChannelGateKernels channel_gate_kernels = {kTile, workspace_bytes, scratch_bytes, reduce, pool, decide};

}  // namespace dyncp::DYNCP_ISA
