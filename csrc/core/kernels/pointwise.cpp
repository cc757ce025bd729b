// Kernel of the 1x1 convolution: one tile of frames at a time.
#include "core/kernels/pointwise.h"

#include "core/kernels/matrix_unit.h"
#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/kernels/sigmoid.h"
#include "core/kernels/storage.h"
#include "core/kernels/tile_rows.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {
namespace {

// Where rows lie, and what becomes of their sums.
template <class T, class Storage>
class Rows {
 protected:
  Rows(const Pointwise& call, void* y)
      : call_(call), x_(input_rows<Storage>(call)), y_(output_rows<Storage>(call, y)) {}

  // The place of tile `index`, numbered over (batch, time).
  struct Place {
    int64_t item, begin, frames;
  };
  Place place_of(int64_t index) const {
    const int64_t tiles = (call_.frames + kTile - 1) / kTile;
    const int64_t begin = index % tiles * kTile, left = call_.frames - begin;
    return {index / tiles, begin, left < kTile ? left : kTile};
  }

  const Storage* x_at(const Place& place) const { return x_.at(place.item, 0, place.begin); }
  const T* weights(const void* p) const { return static_cast<const T*>(p); }

  // `frames` values of a row, from frame t of the tile on, from their sums.
  DYNCP_INLINE void write(const T* sums, int64_t row, const Place& place, int64_t t, int64_t frames) const {
    const T bias = call_.b == nullptr ? T(0) : weights(call_.b)[row];
    Storage* y = y_.at(place.item, row, place.begin + t);
    switch (call_.activation) {
      case Activation::relu:
        return write_as([](Vec<T> v) { return relu<T>(v); }, sums, bias, frames, y);
      case Activation::sigmoid:
        return write_as([](Vec<T> v) { return sigmoid<T>(v); }, sums, bias, frames, y);
      default:
        return write_as([](Vec<T> v) { return v; }, sums, bias, frames, y);
    }
  }

  const Pointwise& call_;

 private:
  template <class Activate>
  DYNCP_INLINE void write_as(Activate activate, const T* sums, T bias, int64_t frames, Storage* y) const {
    int64_t t = 0;
    for (; t + kLanes<T> <= frames; t += kLanes<T>) store(y + t, activate(load(sums + t) + broadcast(bias)));
    if (t < frames) store_first(y + t, activate(load(sums + t) + broadcast(bias)), frames - t);
  }

  const TileRows<const Storage> x_;
  const TileRows<Storage> y_;
};

template <class T, class Storage>
class Tiles : Rows<T, Storage> {
  using typename Rows<T, Storage>::Place;
  using Rows<T, Storage>::call_, Rows<T, Storage>::place_of, Rows<T, Storage>::weights, Rows<T, Storage>::write;
  using Rows<T, Storage>::x_at;

 public:
  Tiles(const Pointwise& call, void* y, Arena arena) : Rows<T, Storage>(call, y) {
    x_tile_ = arena.take<T>(call.channels * kTile);
    sums_ = arena.take<T>(kBlockRows * kTile);
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) tile(index, index + 1 < end, index == begin);
  }

 private:
  void tile(int64_t index, bool has_next, bool is_first) {
    const Place place = place_of(index), next = place_of(index + 1);
    const T* x = packed_rows<T>(call_, x_at(place), place.begin, place.frames, x_tile_);
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
        prefetch_tile(x_at(next), call_.x_channel_stride, call_.channels, next.frames, block, blocks.blocks);
      }
      product_frames<T>(blocks.size(block), w, nullptr, call_.channels, x, place.frames, StoreSums<T>{sums_, kTile});
      for (int r = 0; r < blocks.size(block); ++r) write(sums_ + r * kTile, first + r, place, 0, place.frames);
    }
  }

  T* x_tile_;  // [channels][kTile]
  T* sums_;    // [kBlockRows][kTile]
  int64_t bytes_;
};

template <class Storage>
class UnitTiles;

#if defined(__AMX_BF16__)

// The same on the matrix unit; the next tile is packed beside the products.
template <class Storage>
class UnitTiles : Rows<float, Storage> {
  using typename Rows<float, Storage>::Place;
  using Rows<float, Storage>::call_, Rows<float, Storage>::place_of, Rows<float, Storage>::weights;
  using Rows<float, Storage>::write, Rows<float, Storage>::x_at;

 public:
  UnitTiles(const Pointwise& call, void* y, Arena arena)
      : Rows<float, Storage>(call, y),
        splits_{Split(arena, call.channels), Split(arena, call.channels)},
        product_(arena, call.out_channels, call.channels) {
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t begin, int64_t end) {
    product_.set_rows(
        weights(call_.w), [&](int64_t i) { return i * call_.w_row_stride; }, call_.out_channels, nullptr,
        call_.channels);
    if (begin < end) {
      start_packing(place_of(begin), 1, splits_[begin % 2]);
      packing_.step();
    }
    for (int64_t index = begin; index < end; ++index) {
      const Place place = place_of(index);
      const bool has_next = index + 1 < end;
      const Split& split = splits_[index % 2];
      const int64_t steps = (call_.out_channels + 1) / 2 * split.vectors;
      if (has_next) start_packing(place_of(index + 1), steps, splits_[(index + 1) % 2]);
      product_.multiply(split, WriteAndPack(Output(*this, place), packing_, has_next));
    }
    Product::release();
  }

 private:
  static constexpr int kPieces = kPiecesOf<Storage>;
  using Split = UnitFrames<kPieces>;
  using Product = UnitProduct<kPieces, kPieces>;

  // From sums to y.
  class Output {
   public:
    Output(const UnitTiles& tiles, const Place& place) : tiles_(&tiles), place_(place) {}

    DYNCP_INLINE void complete(UnitPiece piece, int count) const { tiles_->product_.complete(piece, count); }
    DYNCP_INLINE void write(UnitPiece piece, int r) const {
      const int64_t t = piece.v * kUnitFrames, left = place_.frames - t;
      tiles_->write(piece.sums + r * kSumsStride, piece.row + r, place_, t, left < kUnitFrames ? left : kUnitFrames);
    }

   private:
    const UnitTiles* tiles_;
    Place place_;
  };

  void start_packing(const Place& place, int64_t steps, Split& split) {
    packing_.start(x_at(place), call_.x_channel_stride, call_.channels, place.frames, steps, split);
  }

  Split splits_[2];  // of the tiles with even and with odd numbers
  UnitPacking<Storage, kPieces> packing_;
  Product product_;
  int64_t bytes_;
};

#endif

// Calls run(tiles) with the kernel that takes the call.
template <class Run>
auto with_tiles(const Pointwise& call, void* y, void* scratch, Run run) {
  return with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    using T = typename ComputeOf<Storage>::type;
    const Arena arena{static_cast<char*>(scratch)};
    if constexpr (kHasMatrixUnit<T>) {
      if (pays_for_unit(call.batch, call.frames)) {
        UnitTiles<Storage> tiles(call, y, arena);
        return run(tiles);
      }
    }
    Tiles<T, Storage> tiles(call, y, arena);
    return run(tiles);
  });
}

int64_t scratch_bytes(const Pointwise& call) {
  return with_tiles(call, nullptr, nullptr, [](auto& tiles) { return tiles.bytes(); });
}

void tiles(const Pointwise& call, void* y, int64_t begin, int64_t end, void* scratch) {
  with_tiles(call, y, scratch, [&](auto& tiles) { tiles.run(begin, end); });
}

}  // namespace

const PointwiseKernels pointwise_kernels = {kTile, scratch_bytes, tiles};

}  // namespace dyncp::DYNCP_ISA
