// Products of weight rows with a tile of frames on the tile registers of the processor (AMX).
//
// The unit multiplies bfloat16 numbers and adds in float.  A float is the sum of three bfloat16 numbers, its pieces:
// the leading 8 bits, the next 8 and the last 8.  Of the nine products of two such sums the six that matter are taken;
// what is left out is below 2^-24 of the product, the rounding of float itself.  Numbers below 2^-110 lose their last
// pieces, because the unit takes denormals as zeros.  A float beyond the largest bfloat16, an infinity or a NaN makes
// the result NaN, so callers look for results that are not finite and compute these again.
//
// Weights and frames of 16 bits have fewer pieces than three.
#pragma once

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

// Rows of a weight matrix times tiles of frames, see below; exists where the unit does.
template <class T, int kRowPieces, int kFramePieces>
class UnitProduct;

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

// Rounds to the leading 16 bits; the other bits are left over.
DYNCP_INLINE Words rounded_to_piece(Vec<float> v) { return bits_as<Words>(v) + 0x8000; }
DYNCP_INLINE Vec<float> rest_of(Vec<float> v, Words rounded) { return v - bits_as<Vec<float>>(rounded & 0xffff0000); }

// Lane i of the result is lane i - count of `now`, or the lane of `before` that comes before it; count <= 16.
DYNCP_INLINE Vec<float> delayed(Vec<float> before, Vec<float> now, int count) {
  const Words lanes = {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  const __m512i from = bits_as<__m512i>(lanes - static_cast<uint32_t>(count));
  return bits_as<Vec<float>>(_mm512_permutex2var_ps(bits_as<__m512>(before), from, bits_as<__m512>(now)));
}

// [channel][kTile] of floats to [pair of frame units][step][piece][frame unit][pair of channels][frame][channel of the
// pair], in the order in which they are read: tiles of one pair of units share no set of the first-level cache.
template <int kPieces>
DYNCP_INLINE void split_pair(const float* values, int64_t depth, int vectors, int64_t pair, uint16_t* to) {
  const int64_t steps = unit_steps(depth);
  const float* first = values + 2 * pair * kTile;
  for (int v = 0; v < vectors; ++v) {
    uint16_t* at = to + ((v / 2 * steps + pair / 16) * kPieces * 2 + v % 2) * kUnitElements + pair % 16 * 32;
    Vec<float> a = 2 * pair < depth ? load(first + v * kUnitFrames) : zero<float>();
    Vec<float> b = 2 * pair + 1 < depth ? load(first + kTile + v * kUnitFrames) : zero<float>();
#pragma GCC unroll 3
    for (int piece = 0; piece < kPieces; ++piece) {
      // What is left for the last piece fits into it.
      const bool is_exact = piece == kPieces - 1;
      const Words x = is_exact ? bits_as<Words>(a) : rounded_to_piece(a);
      const Words y = is_exact ? bits_as<Words>(b) : rounded_to_piece(b);
      const Words both = (x >> 16) | (y & 0xffff0000);
      __builtin_memcpy(at + piece * 2 * kUnitElements, &both, sizeof(both));
      if (!is_exact) {
        a = rest_of(a, x);
        b = rest_of(b, y);
      }
    }
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
  float listed[16] = {};
  for (int64_t i = 0; i < 16 && k + i < depth; ++i) listed[i] = row[columns[k + i]];
  return load(listed);
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
        const bool is_exact = piece == kPieces - 1;
        const Words x = is_exact ? bits_as<Words>(a) : rounded_to_piece(a);
        const Words y = is_exact ? bits_as<Words>(b) : rounded_to_piece(b);
        store_upper_halves(at + piece * kUnitElements, x, y);
        if (!is_exact) {
          a = rest_of(a, x);
          b = rest_of(b, y);
        }
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
    }
    meanwhile();
  }
  const int64_t stride = out_stride * static_cast<int64_t>(sizeof(float));
  float* second = out + rows_of_tile * out_stride;
  _tile_stored(0, out, stride);
  if (kFrameTiles == 2) _tile_stored(1, out + kUnitFrames, stride);
  if (kRowTiles == 2) _tile_stored(2, second, stride);
  if (kRowTiles == 2 && kFrameTiles == 2) _tile_stored(3, second + kUnitFrames, stride);
}

// Whether all sums of some rows are finite.
DYNCP_INLINE bool sums_are_finite(const float* sums, int64_t stride, int64_t rows, int vectors) {
  Vec<float> nothing = zero<float>();
  for (int64_t r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) nothing += load(sums + r * stride + v * kLanes<float>) * 0.0f;
  }
  return sum_of_lanes<float>(nothing) == 0.0f;
}

// Computes the sums of one row that are not finite again, as products of floats.
inline void heal_sums(const float* row, const int64_t* columns, int64_t depth, const float* values, int vectors,
                      float* sums) {
  float again[kTile];
  product_block<float>(1, &row, columns, depth, values, vectors, again, kTile);
  for (int v = 0; v < vectors; ++v) {
    const Vec<float> sum = load(sums + v * kLanes<float>);
    store(sums + v * kLanes<float>, select(sum - sum == zero<float>(), sum, load(again + v * kLanes<float>)));
  }
}

// Some rows of a weight matrix, at all or some columns, times tiles of frames.  Rows come in blocks, which are
// multiplied one after another.  A sum depends on its row, its frame and the columns only.
template <int kRowPieces, int kFramePieces>
class UnitProduct<float, kRowPieces, kFramePieces> {
 public:
  // Rows that one block of products writes, at most.
  static constexpr int kBlock = 2 * kUnitRows;

  UnitProduct(Arena& arena, int64_t most_rows, int64_t most_depth) {
    const int64_t steps = unit_steps(most_depth), tiles = (most_rows + kUnitRows - 1) / kUnitRows;
    rows_ = arena.take<uint16_t>(tiles * steps * kRowPieces * kUnitElements);
    frames_ = arena.take<uint16_t>(steps * kFramePieces * kFrameUnits * kUnitElements);
    offsets_ = arena.take<int64_t>(most_rows);
    columns_ = arena.take<int64_t>(most_depth);
  }

  // The frames: values[k][kTile] of column k < depth, of which some vectors count.  Split by set_frames, or by
  // set_frames_of(k), which takes columns k and k + 1, for every even k, as soon as these values are there.
  void announce_frames(const float* values, int64_t depth, int vectors) {
    values_ = values;
    depth_ = depth;
    vectors_ = vectors;
    for (int64_t pair = (depth + 1) / 2; pair < unit_steps(depth) * kUnitDepth / 2; ++pair) set_frames_of(2 * pair);
  }
  DYNCP_INLINE void set_frames_of(int64_t k) { split_pair<kFramePieces>(values_, depth_, vectors_, k / 2, frames_); }
  void set_frames() {
    for (int64_t k = 0; k < depth_; k += 2) set_frames_of(k);
  }

  // The rows, for the announced depth.  Row i lies at w + offset_of(i); column k is columns[k], or k where columns is
  // null.  Rows that are set already are not split again.
  template <class OffsetOf>
  void set_rows(const float* w, OffsetOf offset_of, int64_t count, const int64_t* columns) {
    bool is_new = w != w_ || count != count_ || depth_ != row_depth_ || (columns != nullptr) != has_columns_;
    for (int64_t i = 0; i < count && !is_new; ++i) is_new = offsets_[i] != offset_of(i);
    if (columns != nullptr && !is_new) is_new = __builtin_memcmp(columns_, columns, depth_ * sizeof(int64_t)) != 0;
    if (!is_new) return;
    w_ = w;
    count_ = count;
    row_depth_ = depth_;
    has_columns_ = columns != nullptr;
    for (int64_t i = 0; i < count; ++i) offsets_[i] = offset_of(i);
    if (has_columns_) __builtin_memcpy(columns_, columns, depth_ * sizeof(int64_t));
    spread_ = UnitRows(count);
    split_rows<kRowPieces>([&](int64_t i) { return w + offsets_[i]; }, count, columns, depth_, rows_);
  }

  // Before the first block, and after another product has run.
  void start() const {
    if (count_ > 0) configure_unit(spread_.rows);
  }

  // When all products of a call are done: until then each switch of threads saves the tile registers.
  static void finish() { _tile_release(); }

  int64_t blocks() const { return (spread_.tiles + 1) / 2; }
  int64_t begin(int64_t block) const { return 2 * block * spread_.rows; }
  int size(int64_t block) const {
    const int64_t rest = count_ - begin(block), whole = 2 * spread_.rows;
    return static_cast<int>(rest < whole ? rest : whole);
  }

  // How often multiply calls meanwhile().
  int64_t steps_of_block() const { return unit_steps(depth_) * ((vectors_ + 1) / 2); }

  // The sums of the block that begins at row `first` to out[row][frame], with room for kBlock rows.  False if some are
  // not finite.  The unit works by itself, so it is worth giving the processor other work meanwhile.
  template <class Meanwhile>
  bool multiply(int64_t first, float* out, int64_t out_stride, Meanwhile meanwhile) const {
    const int64_t block = first / (2 * spread_.rows);
    // The intrinsics do not tell the compiler that they read memory.
    __asm__ volatile("" ::: "memory");
    const int64_t steps = unit_steps(depth_), row_tile = steps * kRowPieces * kUnitElements;
    const uint16_t* w = rows_ + 2 * block * row_tile;
    const bool has_two = 2 * block + 1 < spread_.tiles;
    for (int v = 0; v < vectors_; v += 2) {
      const uint16_t* x = frames_ + v * steps * kFramePieces * kUnitElements;
      float* to = out + v * kUnitFrames;
      const auto run = [&](auto row_tiles, auto frame_tiles) {
        multiply_units<decltype(row_tiles)::value, decltype(frame_tiles)::value, kRowPieces, kFramePieces>(
            w, row_tile, x, steps, to, spread_.rows, out_stride, meanwhile);
      };
      if (has_two && v + 1 < vectors_) {
        run(Count<2>(), Count<2>());
      } else if (has_two) {
        run(Count<2>(), Count<1>());
      } else if (v + 1 < vectors_) {
        run(Count<1>(), Count<2>());
      } else {
        run(Count<1>(), Count<1>());
      }
    }
    __asm__ volatile("" ::: "memory");
    const int rows = size(block);
    if (sums_are_finite(out, out_stride, rows, vectors_)) return true;
    const int64_t* columns = has_columns_ ? columns_ : nullptr;
    for (int r = 0; r < rows; ++r) {
      heal_sums(w_ + offsets_[first + r], columns, depth_, values_, vectors_, out + r * out_stride);
    }
    return false;
  }

 private:
  template <int kCount>
  struct Count {
    static constexpr int value = kCount;
  };

  const float* w_ = nullptr;
  const float* values_ = nullptr;
  int64_t count_ = -1;
  int64_t depth_ = 0;
  int64_t row_depth_ = 0;  // of the rows that are set
  int vectors_ = 0;
  bool has_columns_ = false;
  UnitRows spread_{0};
  uint16_t* rows_;
  uint16_t* frames_;
  int64_t* offsets_;
  int64_t* columns_;
};

#endif

}  // namespace dyncp::DYNCP_ISA
