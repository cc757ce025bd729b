// Kernel of the 1x1 convolution: one tile of frames at a time.
#include "core/kernels/pointwise.h"

#include "core/kernels/matrix_unit.h"
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
  Tiles(const Pointwise& call, void* y, Arena arena)
      : call_(call),
        y_(static_cast<Storage*>(y)),
        uses_unit_(kHasMatrixUnit<T> && call.frames >= kLeastUnitFrames),
        splits_{Split(arena, uses_unit_ ? call.channels : 0), Split(arena, uses_unit_ ? call.channels : 0)},
        product_(arena, uses_unit_ ? call.out_channels : 0, uses_unit_ ? call.channels : 0) {
    for (T*& tile : x_tiles_) tile = arena.take<T>(call.channels * kTile);
    sums_ = arena.take<T>((uses_unit_ ? 2 * Product::kBlock : kBlockRows) * kTile);
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) tile(index, index + 1 < end, index == begin);
    if constexpr (kHasMatrixUnit<T>) Product::release();
  }

 private:
  using Split = FramesOrNone<T, kPiecesOf<Storage>>;
  using Product = ProductOrNone<T, kPiecesOf<Storage>, kPiecesOf<Storage>>;

  const Storage* x_at(int64_t item, int64_t begin) const {
    return static_cast<const Storage*>(call_.x) + item * call_.x_batch_stride + begin;
  }
  int64_t y_stride() const { return call_.y_channel_stride == 0 ? call_.frames : call_.y_channel_stride; }
  int64_t frames_from(int64_t begin) const { return call_.frames - begin < kTile ? call_.frames - begin : kTile; }

  void tile(int64_t index, bool has_next, bool is_first) {
    const int64_t tiles = (call_.frames + kTile - 1) / kTile;
    const int64_t item = index / tiles;
    const int64_t begin = index % tiles * kTile;
    const int64_t frames = frames_from(begin);
    const int64_t next_begin = (index + 1) % tiles * kTile;
    const Storage* next = has_next ? x_at((index + 1) / tiles, next_begin) : nullptr;
    Storage* y = y_ + item * call_.out_channels * y_stride() + begin;
    if constexpr (kHasMatrixUnit<T>) {
      if (uses_unit_) {
        if (is_first) {
          start_packing(x_at(item, begin), frames, 1, turn_);
          packing_.step();
        }
        return multiply_tile(frames, y, next, frames_from(next_begin));
      }
    }
    pack_tile<T>(x_at(item, begin), call_.x_channel_stride, call_.channels, frames, x_tiles_[0]);
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
      product_block<T>(blocks.size(block), w, nullptr, call_.channels, x_tiles_[0], whole_vectors<T>(frames), sums_,
                       kTile);
      for (int r = 0; r < blocks.size(block); ++r) write(sums_ + r * kTile, first + r, frames, y);
    }
  }

  // The tile that is split in splits_[turn_], while the next one is.
  void multiply_tile(int64_t frames, Storage* y, const Storage* next, int64_t next_frames) {
    product_.set_rows(
        weights(call_.w), [&](int64_t i) { return i * call_.w_row_stride; }, call_.out_channels, nullptr,
        call_.channels);
    const bool has_next = next != nullptr;
    if (has_next) start_packing(next, next_frames, call_.out_channels, 1 - turn_);
    product_.multiply(splits_[turn_], sums_, kTile, [&](int64_t row, const T* sums) {
      if (has_next) packing_.step();
      write(sums, row, frames, y);
    });
    turn_ = 1 - turn_;
  }

  void start_packing(const Storage* x, int64_t frames, int64_t steps, int turn) {
    packing_.start(x, call_.x_channel_stride, call_.channels, frames, steps, x_tiles_[turn], splits_[turn]);
  }

  const T* weights(const void* p) const { return static_cast<const T*>(p); }

  // One row from its sums; y is the first row.
  DYNCP_INLINE void write(const T* sums, int64_t row, int64_t frames, Storage* y) const {
    const T bias = call_.b == nullptr ? T(0) : weights(call_.b)[row];
    y += row * y_stride();
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
  const bool uses_unit_;  // whether the products run on the matrix unit
  Split splits_[2];
  int turn_ = 0;
  PackingOrNone<T, Storage> packing_;
  Product product_;
  T* x_tiles_[2];  // [channels][kTile]
  T* sums_;        // of a block of rows, [kTile] each; of two with a unit
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
