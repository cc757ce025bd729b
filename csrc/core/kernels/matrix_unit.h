// Products of weight rows with a tile of frames on the tile registers of the processor (AMX).
//
// The unit multiplies bfloat16 numbers and adds in float.  A float is the sum of three bfloat16 numbers, its pieces:
// the leading 8 bits, the next 8 and the last 8.  Of the nine products of two such sums the six that matter are taken;
// what is left out is at most 2^-22 of the product and 2^-25 on average, like the rounding of float itself.  Numbers
// below 2^-110 lose their last pieces, because the unit takes denormals as zeros.  An infinity has a NaN for a second
// piece, so results that are not finite are computed again without the unit.
//
// Weights and frames of 16 bits have fewer pieces than three.
#pragma once

#include <type_traits>

#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

template <class T>
constexpr bool kHasMatrixUnit = false;

// Fewer frames than this are not worth splitting weights for.
constexpr int64_t kLeastUnitFrames = 16;

// The pieces of which a value is the sum.
template <class Storage>
constexpr int kPiecesOf = 3;
template <>
constexpr int kPiecesOf<Half> = 2;
template <>
constexpr int kPiecesOf<BFloat16> = 1;

// A tile of frames, and rows of a weight matrix times such tiles, see below; they exist where the unit does.
template <int kPieces>
class UnitFrames;
template <class Storage, int kPieces>
class UnitPacking;
template <int kRowPieces, int kFramePieces>
class UnitProduct;

// Stands where there is no unit.
struct NoUnit {
  static constexpr int kBlock = 0;
  explicit NoUnit(Arena&, int64_t = 0, int64_t = 0) {}
};
struct NoPacking {};
template <class T, int kPieces>
using FramesOrNone = std::conditional_t<kHasMatrixUnit<T>, UnitFrames<kPieces>, NoUnit>;
template <class T, class Storage>
using PackingOrNone = std::conditional_t<kHasMatrixUnit<T>, UnitPacking<Storage, kPiecesOf<Storage>>, NoPacking>;
template <class T, int kRowPieces, int kFramePieces>
using ProductOrNone = std::conditional_t<kHasMatrixUnit<T>, UnitProduct<kRowPieces, kFramePieces>, NoUnit>;

#if defined(__AMX_BF16__)

template <>
constexpr bool kHasMatrixUnit<float> = true;

// A tile register holds 16 rows of 64 bytes: 16 rows of 32 weights, or 16 pairs of channels at 16 frames.
constexpr int kUnitRows = 16;
constexpr int kUnitDepth = 32;
constexpr int kUnitFrames = 16;
constexpr int kUnitElements = kUnitRows * 32;
constexpr int kFrameUnits = kTile / kUnitFrames;
constexpr int kMostPieces = 3;
static_assert(kTile % kUnitFrames == 0, "frames of a tile fill whole tile registers");

DYNCP_INLINE int64_t unit_steps(int64_t depth) { return (depth + kUnitDepth - 1) / kUnitDepth; }

// How `count` rows are spread over tiles: evenly, since a tile takes as long as it has rows.
struct UnitRows {
  explicit UnitRows(int64_t count)
      : tiles((count + kUnitRows - 1) / kUnitRows), rows(tiles == 0 ? 0 : (count + tiles - 1) / tiles) {}
  int64_t tiles;
  int64_t rows;  // of a tile; the last one may have fewer
};

using Words = VectorOf<uint32_t, 16>::type;

// What is left of values when their leading piece, the upper half of their bits, is taken.
DYNCP_INLINE Vec<float> rest_of(Vec<float> v) { return v - bits_as<Vec<float>>(bits_as<Words>(v) & 0xffff0000); }

// Lane i of the result is lane i - count of `now`, or the lane of `before` that comes before it; count <= 16.
DYNCP_INLINE Vec<float> delayed(Vec<float> before, Vec<float> now, int count) {
  const Words lanes = {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  const __m512i from = bits_as<__m512i>(lanes - static_cast<uint32_t>(count));
  return bits_as<Vec<float>>(_mm512_permutex2var_ps(bits_as<__m512>(before), from, bits_as<__m512>(now)));
}

// [channel][kTile] of floats to [pair of frame units][step][piece][frame unit][pair of channels][frame][channel of the
// pair], in the order in which they are read: tiles of one pair of units share no set of the first-level cache.
template <int kPieces>
DYNCP_INLINE void split_pair(const float* values, int64_t depth, int64_t pair, int v, uint16_t* to) {
  uint16_t* at = to + ((v / 2 * unit_steps(depth) + pair / 16) * kPieces * 2 + v % 2) * kUnitElements + pair % 16 * 32;
  const float* first = values + 2 * pair * kTile + v * kUnitFrames;
  Vec<float> a = 2 * pair < depth ? load(first) : zero<float>();
  Vec<float> b = 2 * pair + 1 < depth ? load(first + kTile) : zero<float>();
#pragma GCC unroll 3
  for (int piece = 0; piece < kPieces; ++piece) {
    const Words both = (bits_as<Words>(a) >> 16) | (bits_as<Words>(b) & 0xffff0000);
    __builtin_memcpy(at + piece * 2 * kUnitElements, &both, sizeof(both));
    a = rest_of(a);
    b = rest_of(b);
  }
}

// The upper halves of 32 words.
DYNCP_INLINE void store_upper_halves(uint16_t* to, Words a, Words b) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i halves = _mm512_permutex2var_epi16(bits_as<__m512i>(a), _mm512_load_si512(kOdd), bits_as<__m512i>(b));
  _mm512_storeu_si512(to, halves);
}

// Values k to k + 16 of a row; zeros behind its end.
DYNCP_INLINE Vec<float> load_row(const float* row, const int64_t* columns, int64_t k, int64_t depth) {
  if (columns == nullptr) {
    if (k + 16 <= depth) return load(row + k);
    return k < depth ? load_first(row + k, depth - k) : zero<float>();
  }
  const int64_t left = depth - k;
  if (left <= 0) return zero<float>();
  const uint32_t wanted = left >= 16 ? 0xffff : (1u << left) - 1;
  const __mmask8 low = static_cast<__mmask8>(wanted), high = static_cast<__mmask8>(wanted >> 8);
  const __m512i first = _mm512_maskz_loadu_epi64(low, columns + k);
  const __m512i second = _mm512_maskz_loadu_epi64(high, columns + k + 8);
  const __m256 nothing = _mm256_setzero_ps();
  const __m256 a = _mm512_mask_i64gather_ps(nothing, low, first, row, sizeof(float));
  const __m256 b = _mm512_mask_i64gather_ps(nothing, high, second, row, sizeof(float));
  return bits_as<Vec<float>>(_mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1));
}

// `row_of(i)` is row i; column(k) is columns[k], or k without a list.  To [tile][step][piece][row][column].
template <int kPieces, class RowOf>
DYNCP_INLINE void split_rows(RowOf row_of, int64_t count, const int64_t* columns, int64_t depth, uint16_t* to) {
  const int64_t steps = unit_steps(depth);
  const UnitRows spread(count);
  for (int64_t i = 0; i < spread.tiles * spread.rows; ++i) {
    uint16_t* at = to + i / spread.rows * steps * kPieces * kUnitElements + i % spread.rows * 32;
    const float* row = i < count ? row_of(i) : nullptr;
    for (int64_t step = 0; step < steps; ++step, at += kPieces * kUnitElements) {
      Vec<float> a = zero<float>(), b = zero<float>();
      if (row != nullptr) {
        a = load_row(row, columns, step * kUnitDepth, depth);
        b = load_row(row, columns, step * kUnitDepth + 16, depth);
      }
#pragma GCC unroll 3
      for (int piece = 0; piece < kPieces; ++piece) {
        store_upper_halves(at + piece * kUnitElements, bits_as<Words>(a), bits_as<Words>(b));
        a = rest_of(a);
        b = rest_of(b);
      }
    }
  }
}

// Sets the tile registers for tiles of `rows` weight rows.
DYNCP_INLINE void configure_unit(int64_t rows) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } layout;
  static_assert(sizeof(layout) == 64, "the layout of the tile registers is one cache line");
  for (int i = 0; i < 8; ++i) {
    layout.row_bytes[i] = 64;
    layout.rows[i] = static_cast<uint8_t>(i < 6 ? rows : 16);
  }
  _tile_loadconfig(&layout);
}

// The products of pieces in the order in which they are added: only one factor changes from one to the next, so that
// the fewest tiles are loaded, and the largest product comes last.
template <int kRowPieces, int kFramePieces>
struct PieceProducts {
  int row[6] = {}, frame[6] = {}, count = 0;
  constexpr PieceProducts() {
    int i = 0, j = kFramePieces - 1;
    for (bool goes_down = kFramePieces < kMostPieces; i < kRowPieces && j >= 0; goes_down = !goes_down) {
      if (i + j < kMostPieces && (i > 0 || j > 0)) add(i, j);
      goes_down&& i + 1 < kRowPieces ? ++i : --j;
    }
    for (++i; i < kRowPieces; ++i) add(i, 0);
    add(0, 0);
  }
  constexpr void add(int i, int j) {
    row[count] = i;
    frame[count++] = j;
  }
};

// One or two tiles of rows times one or two tiles of frames.
template <int kRowTiles, int kFrameTiles, int kRowPieces, int kFramePieces, class Meanwhile>
DYNCP_INLINE void multiply_units(const uint16_t* rows, int64_t row_tile, const uint16_t* frames, int64_t steps,
                                 float* out, int64_t rows_of_tile, int64_t out_stride, Meanwhile meanwhile) {
  constexpr PieceProducts<kRowPieces, kFramePieces> products;
  _tile_zero(0);
  if (kFrameTiles == 2) _tile_zero(1);
  if (kRowTiles == 2) _tile_zero(2);
  if (kRowTiles == 2 && kFrameTiles == 2) _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    const uint16_t* w = rows + step * kRowPieces * kUnitElements;
    const uint16_t* x = frames + step * kFramePieces * 2 * kUnitElements;
#pragma GCC unroll 6
    for (int p = 0; p < products.count; ++p) {
      const int i = products.row[p], j = products.frame[p];
      if (p == 0 || i != products.row[p - 1]) {
        _tile_loadd(4, w + i * kUnitElements, 64);
        if (kRowTiles == 2) _tile_loadd(5, w + row_tile + i * kUnitElements, 64);
      }
      if (p == 0 || j != products.frame[p - 1]) {
        _tile_loadd(6, x + j * 2 * kUnitElements, 64);
        if (kFrameTiles == 2) _tile_loadd(7, x + (j * 2 + 1) * kUnitElements, 64);
      }
      _tile_dpbf16ps(0, 4, 6);
      if (kFrameTiles == 2) _tile_dpbf16ps(1, 4, 7);
      if (kRowTiles == 2) _tile_dpbf16ps(2, 5, 6);
      if (kRowTiles == 2 && kFrameTiles == 2) _tile_dpbf16ps(3, 5, 7);
      meanwhile();
    }
  }
  const int64_t stride = out_stride * static_cast<int64_t>(sizeof(float));
  float* second = out + rows_of_tile * out_stride;
  _tile_stored(0, out, stride);
  if (kFrameTiles == 2) _tile_stored(1, out + kUnitFrames, stride);
  if (kRowTiles == 2) _tile_stored(2, second, stride);
  if (kRowTiles == 2 && kFrameTiles == 2) _tile_stored(3, second + kUnitFrames, stride);
}

// Whether all sums of a row are finite.
DYNCP_INLINE bool sums_are_finite(const float* sums, int vectors) {
  constexpr int kNanOrInfinite = 0x99;
  unsigned found = 0;
  for (int v = 0; v < vectors; ++v) {
    found |= _mm512_fpclass_ps_mask(bits_as<__m512>(load(sums + v * kUnitFrames)), kNanOrInfinite);
  }
  return found == 0;
}

// A tile of frames, split: values[k][kTile] of channel k < depth, of which some vectors count.
template <int kPieces>
class UnitFrames {
 public:
  UnitFrames(Arena& arena, int64_t most_depth) {
    split_ = arena.take<uint16_t>(unit_steps(most_depth) * kPieces * kFrameUnits * kUnitElements);
  }

  // What is to be split, by split_all or, as soon as the values of channels k and k + 1 are there, by split(k) for
  // every even k.
  void announce(const float* new_values, int64_t new_depth, int new_vectors) {
    values = new_values;
    depth = new_depth;
    vectors = new_vectors;
    for (int64_t k = (depth + 1) / 2 * 2; k < unit_steps(depth) * kUnitDepth; k += 2) split(k);
  }
  DYNCP_INLINE void split(int64_t k) {
    for (int v = 0; v < vectors; ++v) split_pair<kPieces>(values, depth, k / 2, v, split_);
  }
  void split_all() {
    for (int64_t k = 0; k < depth; k += 2) split(k);
  }

  // Vectors v and v + 1, v even.
  const uint16_t* at(int v) const { return split_ + v * unit_steps(depth) * kPieces * kUnitElements; }

  const float* values = nullptr;
  int64_t depth = 0;
  int vectors = 0;

 private:
  uint16_t* split_;
};

// Packs rows of frames into a tile and splits it, all at once or in parts beside other work.
template <class Storage, int kPieces>
class UnitPacking {
 public:
  // `rows` rows of `frames` values, row_stride apart.  step() will be called `steps` times.
  void start(const Storage* source, int64_t row_stride, int64_t rows, int64_t frames, int64_t steps, float* tile,
             UnitFrames<kPieces>& split) {
    split.announce(tile, rows, whole_vectors<float>(frames));
    source_ = source;
    row_stride_ = row_stride;
    rows_ = rows;
    frames_ = frames;
    tile_ = tile;
    split_ = &split;
    pairs_ = (rows + 1) / 2;
    steps_ = steps;
    due_ = k_ = 0;
  }

  DYNCP_INLINE void step() {
    for (due_ += pairs_; due_ >= steps_; due_ -= steps_, k_ += 2) {
      pack_tile<float>(source_ + k_ * row_stride_, row_stride_, k_ + 1 < rows_ ? 2 : 1, frames_, tile_ + k_ * kTile);
      split_->split(k_);
    }
  }

 private:
  const Storage* source_;
  int64_t row_stride_, rows_, frames_, pairs_, steps_, due_, k_;
  float* tile_;
  UnitFrames<kPieces>* split_;
};

// Some rows of a weight matrix, at all or some columns, times tiles of frames.  Rows are multiplied in blocks.  A sum
// depends on its row, its frame and the columns only.
template <int kRowPieces, int kFramePieces>
class UnitProduct {
 public:
  // Rows of a block, at most.
  static constexpr int kBlock = 2 * kUnitRows;
  static constexpr int kProducts = PieceProducts<kRowPieces, kFramePieces>().count;
  using Frames = UnitFrames<kFramePieces>;

  UnitProduct(Arena& arena, int64_t most_rows, int64_t most_depth) {
    const int64_t steps = unit_steps(most_depth), tiles = (most_rows + kUnitRows - 1) / kUnitRows;
    rows_ = arena.take<uint16_t>(tiles * steps * kRowPieces * kUnitElements);
    offsets_ = arena.take<int64_t>(most_rows);
    columns_ = arena.take<int64_t>(most_depth);
  }

  // Row i lies at w + offset_of(i); column k < depth is columns[k], or k where columns is null.  Rows that are set
  // already are not split again.
  template <class OffsetOf>
  void set_rows(const float* w, OffsetOf offset_of, int64_t count, const int64_t* columns, int64_t depth) {
    bool is_new = w != w_ || count != count_ || depth != depth_ || (columns != nullptr) != has_columns_;
    for (int64_t i = 0; i < count && !is_new; ++i) is_new = offsets_[i] != offset_of(i);
    if (columns != nullptr && !is_new) is_new = __builtin_memcmp(columns_, columns, depth * sizeof(int64_t)) != 0;
    if (!is_new) return;
    w_ = w;
    count_ = count;
    depth_ = depth;
    has_columns_ = columns != nullptr;
    for (int64_t i = 0; i < count; ++i) offsets_[i] = offset_of(i);
    if (has_columns_) __builtin_memcpy(columns_, columns, depth * sizeof(int64_t));
    spread_ = UnitRows(count);
    split_rows<kRowPieces>([&](int64_t i) { return w + offsets_[i]; }, count, columns, depth, rows_);
  }

  // Multiplies all rows with frames of the same depth, and calls finish(row, sums of the row) for every row, in order
  // and while the unit is busy with the next block: a row after every few products, because the processor sees only
  // some hundred instructions ahead.  `out` has room for two blocks.  repair(row, sums) comes before, where some sums
  // are not finite.
  template <class Finish>
  void multiply(const Frames& frames, float* out, int64_t out_stride, Finish finish) const {
    multiply(frames, out, out_stride, finish, [](int64_t, float*) {});
  }
  template <class Finish, class Repair>
  void multiply(const Frames& frames, float* out, int64_t out_stride, Finish finish, Repair repair) const {
    if (count_ == 0) return;
    configure_unit(spread_.rows);
    const int64_t blocks = (spread_.tiles + 1) / 2;
    const int64_t calls = unit_steps(depth_) * ((frames.vectors + 1) / 2) * kProducts;
    for (int64_t block = 0; block <= blocks; ++block) {
      const int64_t before = block == 0 ? 0 : begin(block - 1), end = block == 0 ? 0 : begin(block);
      float* finished = out + (block + 1) % 2 * kBlock * out_stride;
      int64_t row = before, due = 0;
      const auto finish_row = [&] {
        float* sums = finished + (row - before) * out_stride;
        if (!sums_are_finite(sums, frames.vectors)) {
          heal(row, frames, sums);
          repair(row, sums);
        }
        finish(row, sums);
        ++row;
      };
      if (block < blocks) {
        multiply_block(block, frames, out + block % 2 * kBlock * out_stride, out_stride, [&] {
          for (due += end - before; due >= calls; due -= calls) finish_row();
        });
      }
      while (row < end) finish_row();
    }
  }

  // When all products of a call are done: until then each switch of threads saves the tile registers.
  static void release() { _tile_release(); }

 private:
  template <int kCount>
  struct Count {
    static constexpr int value = kCount;
  };

  int64_t begin(int64_t block) const {
    const int64_t row = 2 * block * spread_.rows;
    return row < count_ ? row : count_;
  }

  template <class Meanwhile>
  DYNCP_INLINE void multiply_block(int64_t block, const Frames& frames, float* out, int64_t out_stride,
                                   Meanwhile meanwhile) const {
    // The intrinsics do not tell the compiler that they read memory.
    __asm__ volatile("" ::: "memory");
    const int64_t steps = unit_steps(depth_), row_tile = steps * kRowPieces * kUnitElements;
    const uint16_t* w = rows_ + 2 * block * row_tile;
    const bool has_two = 2 * block + 1 < spread_.tiles;
    for (int v = 0; v < frames.vectors; v += 2) {
      const auto run = [&](auto row_tiles, auto frame_tiles) {
        multiply_units<decltype(row_tiles)::value, decltype(frame_tiles)::value, kRowPieces, kFramePieces>(
            w, row_tile, frames.at(v), steps, out + v * kUnitFrames, spread_.rows, out_stride, meanwhile);
      };
      if (has_two && v + 1 < frames.vectors) {
        run(Count<2>(), Count<2>());
      } else if (has_two) {
        run(Count<2>(), Count<1>());
      } else if (v + 1 < frames.vectors) {
        run(Count<1>(), Count<2>());
      } else {
        run(Count<1>(), Count<1>());
      }
    }
    __asm__ volatile("" ::: "memory");
  }

  // Computes the sums of a row that are not finite again, as products of floats.
  void heal(int64_t i, const Frames& frames, float* sums) const {
    float again[kTile];
    const float* row = w_ + offsets_[i];
    product_block<float>(1, &row, has_columns_ ? columns_ : nullptr, depth_, frames.values, frames.vectors, again,
                         kTile);
    for (int t = 0; t < frames.vectors * kUnitFrames; t += kUnitFrames) {
      const Vec<float> sum = load(sums + t);
      store(sums + t, select(sum - sum == zero<float>(), sum, load(again + t)));
    }
  }

  const float* w_ = nullptr;
  int64_t count_ = 0;
  int64_t depth_ = 0;
  bool has_columns_ = false;
  UnitRows spread_{0};
  uint16_t* rows_;
  int64_t* offsets_;
  int64_t* columns_;
};

#endif

}  // namespace dyncp::DYNCP_ISA
