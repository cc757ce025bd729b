// Kernel of the 1x1 convolution: one tile of frames at a time.
#include "core/kernels/pointwise.h"

#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/kernels/sigmoid.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {
namespace {

template <class T, class Storage>
class Tiles {
 public:
  Tiles(const Pointwise& call, void* y, Arena arena) : call_(call), y_(static_cast<Storage*>(y)) {
    x_tile_ = arena.take<T>(call.channels * kTile);
    sums_ = arena.take<T>(kBlockRows * kTile);
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) tile(index, index + 1 < end, index == begin);
  }

 private:
  const Storage* x_at(int64_t item, int64_t begin) const {
    return static_cast<const Storage*>(call_.x) + item * call_.x_batch_stride + begin;
  }
  int64_t frames_from(int64_t begin) const { return call_.frames - begin < kTile ? call_.frames - begin : kTile; }

  void tile(int64_t index, bool has_next, bool is_first) {
    const int64_t tiles = (call_.frames + kTile - 1) / kTile;
    const int64_t item = index / tiles;
    const int64_t begin = index % tiles * kTile;
    const int64_t frames = frames_from(begin);
    const int64_t next_begin = (index + 1) % tiles * kTile;
    const Storage* next = has_next ? x_at((index + 1) / tiles, next_begin) : nullptr;
    pack_tile<T>(x_at(item, begin), call_.x_channel_stride, call_.channels, frames, x_tile_);
    const RowBlocks blocks(call_.out_channels);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const int64_t first = blocks.begin(block);
      const T* w[kBlockRows];
      for (int r = 0; r < blocks.size(block); ++r) {
        w[r] = weights(call_.w) + (first + r) * call_.w_row_stride;
        const int64_t later = first + r + kBlockRows;
        if (is_first && later < call_.out_channels) {
          prefetch(weights(call_.w) + later * call_.w_row_stride, call_.channels);
        }
      }
      if (has_next) {
        prefetch_tile(next, call_.x_channel_stride, call_.channels, frames_from(next_begin), block, blocks.blocks);
      }
      product_block<T>(blocks.size(block), w, nullptr, call_.channels, x_tile_, whole_vectors<T>(frames), sums_, kTile);
      for (int r = 0; r < blocks.size(block); ++r) {
        const T bias = call_.b == nullptr ? T(0) : weights(call_.b)[first + r];
        write(sums_ + r * kTile, bias, frames, y_ + (item * call_.out_channels + first + r) * call_.frames + begin);
      }
    }
  }

  const T* weights(const void* p) const { return static_cast<const T*>(p); }

  DYNCP_INLINE void write(const T* sums, T bias, int64_t frames, Storage* y) const {
    switch (call_.activation) {
      case Activation::relu:
        return write_as([](Vec<T> v) { return relu<T>(v); }, sums, bias, frames, y);
      case Activation::sigmoid:
        return write_as([](Vec<T> v) { return sigmoid<T>(v); }, sums, bias, frames, y);
      default:
        return write_as([](Vec<T> v) { return v; }, sums, bias, frames, y);
    }
  }

  template <class Activate>
  DYNCP_INLINE void write_as(Activate activate, const T* sums, T bias, int64_t frames, Storage* y) const {
    int64_t t = 0;
    for (; t + kLanes<T> <= frames; t += kLanes<T>) store(y + t, activate(load(sums + t) + broadcast(bias)));
    if (t < frames) store_first(y + t, activate(load(sums + t) + broadcast(bias)), frames - t);
  }

  const Pointwise& call_;
  Storage* y_;
  T* x_tile_;  // [channels][kTile]
  T* sums_;    // [kBlockRows][kTile]
  int64_t bytes_;
};

int64_t scratch_bytes(const Pointwise& call) {
  return with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    return Tiles<typename ComputeOf<Storage>::type, Storage>(call, nullptr, Arena{nullptr}).bytes();
  });
}

void tiles(const Pointwise& call, void* y, int64_t begin, int64_t end, void* scratch) {
  with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    Tiles<typename ComputeOf<Storage>::type, Storage>(call, y, Arena{static_cast<char*>(scratch)}).run(begin, end);
  });
}

}  // namespace

const PointwiseKernels pointwise_kernels = {kTile, scratch_bytes, tiles};

}  // namespace dyncp::DYNCP_ISA
