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

#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

template <class T>
constexpr bool kHasMatrixUnit = false;

// Whether a call has so many frames that splitting its weights pays, and fills tiles with them.
constexpr bool pays_for_unit(int64_t batch, int64_t frames) { return frames >= 16 && batch * frames >= 48; }

// The pieces of which a value is the sum.
template <class Storage>
constexpr int kPiecesOf = 3;
template <>
inline constexpr int kPiecesOf<Half> = 2;
template <>
inline constexpr int kPiecesOf<BFloat16> = 1;

#if defined(__AMX_BF16__)

template <>
inline constexpr bool kHasMatrixUnit<float> = true;

// A tile register holds 16 rows of 64 bytes: 16 rows of 32 weights, or 16 pairs of channels at 16 frames.
constexpr int kUnitRows = 16;
constexpr int kUnitDepth = 32;
constexpr int kUnitFrames = 16;
constexpr int kUnitElements = kUnitRows * 32;
constexpr int kFrameUnits = kTile / kUnitFrames;
constexpr int kMostPieces = 3;
// Sums of a row at two units of frames.
constexpr int64_t kSumsStride = 2 * kUnitFrames;
static_assert(kTile % kUnitFrames == 0, "frames of a tile fill whole tile registers");

// A step multiplies kUnitDepth channels.  So few channels behind the last whole step cost less without the unit.
constexpr int kMostRest = 8;
DYNCP_INLINE int64_t unit_rest(int64_t depth) { return depth % kUnitDepth <= kMostRest ? depth % kUnitDepth : 0; }
DYNCP_INLINE int64_t unit_steps(int64_t depth) { return (depth - unit_rest(depth) + kUnitDepth - 1) / kUnitDepth; }

// How `count` rows are spread over tiles: evenly, since a tile takes as long as it has rows.
struct UnitRows {
  explicit UnitRows(int64_t count)
      : tiles((count + kUnitRows - 1) / kUnitRows), rows(tiles == 0 ? 0 : (count + tiles - 1) / tiles) {}
  int64_t tiles;
  int64_t rows;  // of a tile; the last one may have fewer
};

// What is left of values when their leading piece, the upper half of their bits, is taken.
DYNCP_INLINE Vec<float> rest_of(Vec<float> v) { return v - bits_as<Vec<float>>(bits_as<Words>(v) & 0xffff0000); }

// Two channels at 16 frames to [piece][pair of channels][frame][channel of the pair]; pieces are `distance` apart.
template <int kPieces>
DYNCP_INLINE void split_pair(Vec<float> a, Vec<float> b, uint16_t* to, int64_t distance) {
#pragma GCC unroll 3
  for (int piece = 0; piece < kPieces; ++piece) {
    const Words both = (bits_as<Words>(a) >> 16) | (bits_as<Words>(b) & 0xffff0000);
    __builtin_memcpy(to + piece * distance, &both, sizeof(both));
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
  // GCC takes the intrinsic to read the first eight bytes only.
  __asm__ volatile("" : : "r"(&layout) : "memory");
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

// Two rows, or the last one, at one vector of frames: the sums that a product hands on.
struct UnitPiece {
  int64_t row;
  int v;
  float* sums;  // those of the second row lie kSumsStride behind
};

// The pieces of some rows at one or two vectors, in order.
class UnitPieces {
 public:
  UnitPieces() = default;
  UnitPieces(int64_t begin, int64_t end, int v, int end_v, float* sums)
      : row_(begin), end_(end), v_(v), begin_v_(v), end_v_(end_v), sums_(sums) {}

  int64_t count() const { return (end_ - row_ + 1) / 2 * (end_v_ - begin_v_); }
  bool are_left() const { return row_ < end_; }
  bool next_has_two() const { return row_ + 1 < end_; }
  DYNCP_INLINE UnitPiece take() {
    const UnitPiece piece = {row_, v_, sums_ + (v_ - begin_v_) * kUnitFrames};
    if (++v_ == end_v_) {
      v_ = begin_v_;
      row_ += 2;
      sums_ += 2 * kSumsStride;
    }
    return piece;
  }

 private:
  int64_t row_ = 0, end_ = 0;
  int v_ = 0, begin_v_ = 0, end_v_ = 0;
  float* sums_ = nullptr;
};

// Work that is done piece by piece, not in stages: does(piece, rows).
template <class Does>
class PieceByPiece {
 public:
  explicit PieceByPiece(const Does& does) : does_(&does) {}
  void first(UnitPiece) {}
  void second(UnitPiece) {}
  void third(UnitPiece) {}
  void fourth(UnitPiece piece) { (*does_)(piece, 2); }
  void single(UnitPiece piece) { (*does_)(piece, 1); }

 private:
  const Does* does_;
};

// What is done with pieces while the unit computes others.  A piece of two rows is done in four stages, with an
// instruction for the unit between them: the processor sees only some hundred instructions ahead, and a longer stretch
// of other work would let the unit run dry.
template <class Work>
class BesideUnit {
 public:
  explicit BesideUnit(const Work& work) : work_(work) {}

  // Spreads all pieces over so many calls of `product`.
  DYNCP_INLINE void start(const UnitPieces& pieces, int64_t calls) {
    pieces_ = pieces;
    of_call_ = pieces.count();
    calls_ = calls;
    due_ = 0;
  }

  template <int kRowTiles, int kFrameTiles>
  DYNCP_INLINE void product() {
    for (due_ += of_call_; due_ >= 2 * calls_; due_ -= calls_) whole();
    if (due_ < calls_) return multiply<kRowTiles, kFrameTiles>();
    due_ -= calls_;
    if (!pieces_.next_has_two()) {
      work_.single(pieces_.take());
      return multiply<kRowTiles, kFrameTiles>();
    }
    const UnitPiece piece = pieces_.take();
    _tile_dpbf16ps(0, 4, 6);
    work_.first(piece);
    if (kFrameTiles == 2) _tile_dpbf16ps(1, 4, 7);
    work_.second(piece);
    if (kRowTiles == 2) _tile_dpbf16ps(2, 5, 6);
    work_.third(piece);
    if (kRowTiles == 2 && kFrameTiles == 2) _tile_dpbf16ps(3, 5, 7);
    work_.fourth(piece);
  }

  DYNCP_INLINE void finish() {
    while (pieces_.are_left()) whole();
  }

 private:
  template <int kRowTiles, int kFrameTiles>
  DYNCP_INLINE static void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    if (kFrameTiles == 2) _tile_dpbf16ps(1, 4, 7);
    if (kRowTiles == 2) _tile_dpbf16ps(2, 5, 6);
    if (kRowTiles == 2 && kFrameTiles == 2) _tile_dpbf16ps(3, 5, 7);
  }

  DYNCP_INLINE void whole() {
    const bool has_two = pieces_.next_has_two();
    const UnitPiece piece = pieces_.take();
    if (!has_two) return work_.single(piece);
    work_.first(piece);
    work_.second(piece);
    work_.third(piece);
    work_.fourth(piece);
  }

  Work work_;
  UnitPieces pieces_;
  int64_t of_call_ = 0, calls_ = 1, due_ = 0;
};

// One or two tiles of rows times one or two tiles of frames.
template <int kRowTiles, int kFrameTiles, int kRowPieces, int kFramePieces, class Beside>
DYNCP_INLINE void multiply_units(const uint16_t* rows, int64_t row_tile, const uint16_t* frames, int64_t steps,
                                 float* sums, int64_t rows_of_tile, Beside& beside) {
  static constexpr PieceProducts<kRowPieces, kFramePieces> products;
  constexpr int64_t kStride = kSumsStride * sizeof(float);
  _tile_zero(0);
  if (kFrameTiles == 2) _tile_zero(1);
  if (kRowTiles == 2) _tile_zero(2);
  if (kRowTiles == 2 && kFrameTiles == 2) _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    const uint16_t* w = rows + step * kRowPieces * kUnitElements;
    const uint16_t* x = frames + step * kFramePieces * 2 * kUnitElements;
    const auto multiply = [&](int p) __attribute__((always_inline)) {
      const int i = products.row[p], j = products.frame[p];
      if (p == 0 || i != products.row[p - 1]) {
        _tile_loadd(4, w + i * kUnitElements, 64);
        if (kRowTiles == 2) _tile_loadd(5, w + row_tile + i * kUnitElements, 64);
      }
      if (p == 0 || j != products.frame[p - 1]) {
        _tile_loadd(6, x + j * 2 * kUnitElements, 64);
        if (kFrameTiles == 2) _tile_loadd(7, x + (j * 2 + 1) * kUnitElements, 64);
      }
      beside.template product<kRowTiles, kFrameTiles>();
    };
    // The work beside is long, so only what runs most is unrolled.
    if (kRowTiles == 2 && kFrameTiles == 2) {
#pragma GCC unroll 6
      for (int p = 0; p < products.count; ++p) multiply(p);
    } else {
#pragma GCC unroll 1
      for (int p = 0; p < products.count; ++p) multiply(p);
    }
  }
  float* second = sums + rows_of_tile * kSumsStride;
  _tile_stored(0, sums, kStride);
  if (kFrameTiles == 2) _tile_stored(1, sums + kUnitFrames, kStride);
  if (kRowTiles == 2) _tile_stored(2, second, kStride);
  if (kRowTiles == 2 && kFrameTiles == 2) _tile_stored(3, second + kUnitFrames, kStride);
}

// Whether all lanes of both are finite.
DYNCP_INLINE bool are_finite(Vec<float> a, Vec<float> b) {
  constexpr int kNanOrInfinite = 0x99;
  return (_mm512_fpclass_ps_mask(bits_as<__m512>(a), kNanOrInfinite) |
          _mm512_fpclass_ps_mask(bits_as<__m512>(b), kNanOrInfinite)) == 0;
}

// A tile of frames, split: [pair of frame units][step][piece][frame unit][pair of channels][frame][channel of the
// pair], in the order in which they are read.  Tiles of one pair of units share no set of the first-level cache.
template <int kPieces>
class UnitFrames {
 public:
  UnitFrames(Arena& arena, int64_t most_depth) {
    writer_.split_ = arena.take<uint16_t>(unit_steps(most_depth) * kPieces * kFrameUnits * kUnitElements);
    writer_.rest_ = arena.take<float>(kMostRest * kTile);
    whole_ = arena.take<float>(most_depth * kTile);
  }

  // Begins a tile of so many channels and vectors of frames.
  void start(int64_t new_depth, int new_vectors) {
    depth = writer_.depth_ = new_depth;
    vectors = new_vectors;
    writer_.end_ = unit_steps(depth) * kUnitDepth;
    writer_.two_units_ = unit_steps(depth) * kPieces * 2 * kUnitElements;
    is_whole_ = false;
    for (int64_t k = (depth + 1) / 2 * 2; k < writer_.end_; k += 2) {
      for (int v = 0; v < vectors; ++v) writer_.put(k, v, zero<float>(), zero<float>());
    }
  }

  // Where values go.
  class Writer {
   public:
    // Channels k and k + 1, k even, at the frames of vector v; the second one counts where it exists.
    DYNCP_INLINE void put(int64_t k, int v, Vec<float> a, Vec<float> b) const {
      if (k < end_) return split_pair<kPieces>(a, b, at(k, v), 2 * kUnitElements);
      float* to = rest_ + (k - end_) * kTile + v * kUnitFrames;
      store(to, a);
      if (k + 1 < depth_) store(to + kTile, b);
    }

   private:
    friend class UnitFrames;
    DYNCP_INLINE uint16_t* at(int64_t k, int v) const {
      const uint64_t channel = static_cast<uint64_t>(k), vector = static_cast<unsigned>(v);
      return split_ + vector / 2 * two_units_ + (channel / kUnitDepth * kPieces * 2 + vector % 2) * kUnitElements +
             channel % kUnitDepth / 2 * 32;
    }

    uint16_t* split_;
    uint64_t two_units_;  // from one pair of frame units to the next
    float* rest_;
    int64_t end_;  // of the channels that are split
    int64_t depth_;
  };

  Writer writer() const { return writer_; }

  // Vectors v and v + 1, v even.
  const uint16_t* at(int v) const { return writer_.at(0, v); }
  // The channels behind those that are split: [channel][kTile].
  const float* rest() const { return writer_.rest_; }

  // All values as they were, [channel][kTile]: the sums of the pieces, where those are finite.
  const float* whole() const {
    if (!is_whole_) {
      for (int64_t k = 0; k < depth; ++k) {
        for (int t = 0; t < vectors * kUnitFrames; ++t) whole_[k * kTile + t] = value(k, t);
      }
      is_whole_ = true;
    }
    return whole_;
  }

  int64_t depth = 0;
  int vectors = 0;

 private:
  float value(int64_t k, int t) const {
    if (k >= writer_.end_) return writer_.rest_[(k - writer_.end_) * kTile + t];
    const uint16_t* pieces = writer_.at(k, t / kUnitFrames) + t % kUnitFrames * 2 + k % 2;
    float sum = 0;
    for (int piece = kPieces - 1; piece >= 0; --piece) {
      const float part = widen(BFloat16{pieces[piece * 2 * kUnitElements]});
      // The pieces behind one that is not finite are NaN.
      sum = part - part == 0 ? sum + part : part;
    }
    return sum;
  }

  Writer writer_;
  float* whole_;
  mutable bool is_whole_ = false;
};

// Splits rows of frames, all at once or in parts beside other work.
template <class Storage, int kPieces>
class UnitPacking {
 public:
  // `rows` rows of `frames` values, row_stride apart.  step() will be called `steps` times.
  void start(const Storage* source, int64_t row_stride, int64_t rows, int64_t frames, int64_t steps,
             UnitFrames<kPieces>& split) {
    split.start(rows, whole_vectors<float>(frames));
    writer_ = split.writer();
    vectors_ = split.vectors;
    source_ = source;
    row_stride_ = row_stride;
    rows_ = rows;
    frames_ = frames;
    pieces_ = (rows + 1) / 2 * split.vectors;
    steps_ = steps;
    due_ = k_ = 0;
    v_ = 0;
  }

  DYNCP_INLINE void step() {
    for (due_ += pieces_; due_ >= steps_; due_ -= steps_) {
      const Storage* a = source_ + k_ * row_stride_;
      writer_.put(k_, v_, frames_of(a, v_), k_ + 1 < rows_ ? frames_of(a + row_stride_, v_) : zero<float>());
      if (++v_ < vectors_) continue;
      v_ = 0;
      k_ += 2;
    }
  }

 private:
  // Adding zero makes signalling NaNs quiet, which marks them in their upper half.
  DYNCP_INLINE Vec<float> frames_of(const Storage* row, int v) const {
    const int64_t left = frames_ - v * kUnitFrames;
    row += v * kUnitFrames;
    return (left >= kUnitFrames ? load(row) : load_first(row, left)) + zero<float>();
  }

  const Storage* source_;
  int64_t row_stride_, rows_, frames_, pieces_, steps_, due_, k_;
  int v_, vectors_;
  typename UnitFrames<kPieces>::Writer writer_;
};

// Work that completes pieces, writes their rows, and packs a part of the next tile, if there is one.  `Rows` has
// complete(piece, rows) and write(piece, row of the piece).
template <class Rows, class Packing>
class WriteAndPack {
 public:
  WriteAndPack(const Rows& rows, const Packing& packing, bool packs) : rows_(rows), packing_(packing), packs_(packs) {}

  DYNCP_INLINE void first(UnitPiece piece) { rows_.complete(piece, 2); }
  DYNCP_INLINE void second(UnitPiece piece) { rows_.write(piece, 0); }
  DYNCP_INLINE void third(UnitPiece piece) { rows_.write(piece, 1); }
  DYNCP_INLINE void fourth(UnitPiece) { pack(); }
  DYNCP_INLINE void single(UnitPiece piece) {
    rows_.complete(piece, 1);
    rows_.write(piece, 0);
    pack();
  }

 private:
  DYNCP_INLINE void pack() {
    if (packs_) packing_.step();
  }

  Rows rows_;
  Packing packing_;
  bool packs_;
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
    rest_ = arena.take<float>(most_rows * kMostRest);
    sums_ = arena.take<float>(2 * kBlock * kSumsStride);
  }

  // Row i lies at w + offset_of(i); column k < depth is columns[k], or k where columns is null.
  template <class OffsetOf>
  void set_rows(const float* w, OffsetOf offset_of, int64_t count, const int64_t* columns, int64_t depth) {
    w_ = w;
    count_ = count;
    depth_ = depth;
    has_columns_ = columns != nullptr;
    for (int64_t i = 0; i < count; ++i) offsets_[i] = offset_of(i);
    if (has_columns_) __builtin_memcpy(columns_, columns, depth * sizeof(int64_t));
    spread_ = UnitRows(count);
    rest_count_ = unit_rest(depth);
    const int64_t whole = depth - rest_count_;
    split_rows<kRowPieces>([&](int64_t i) { return w + offsets_[i]; }, count, columns, whole, rows_);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < rest_count_; ++k) {
        rest_[i * kMostRest + k] = w[offsets_[i] + (columns == nullptr ? whole + k : columns[whole + k])];
      }
    }
  }

  // Multiplies all rows with frames of the same depth.  `work` gets every piece while the unit is busy with the next
  // ones: pairs of vectors one after the other, rows in order.  It completes the sums of a piece before it uses them.
  template <class Work>
  void multiply(const Frames& frames, const Work& work) {
    if (count_ == 0) return;
    configure_unit(spread_.rows);
    frames_ = &frames;
    const int64_t blocks = (spread_.tiles + 1) / 2, calls = unit_steps(depth_) * kProducts;
    BesideUnit<Work> beside(work);
    // The frames of a pair of units stay in the first-level cache while all weights pass.
    for (int pair = 0, turn = 0; pair < frames.vectors; pair += 2) {
      const int end_v = pair + 1 < frames.vectors ? pair + 2 : pair + 1;
      for (int64_t block = 0; block < blocks; ++block, turn ^= 1) {
        float* sums = sums_ + turn * kBlock * kSumsStride;
        multiply_block(block, pair, sums, beside);
        beside.finish();
        // Blocks begin at even rows.
        beside.start(UnitPieces(begin(block), begin(block + 1), pair, end_v, sums), calls);
      }
    }
    beside.finish();
  }

  // Adds to the sums of a piece what the unit left out.  repair(row, v, sums) is called for those that are not finite.
  template <class Repair>
  DYNCP_INLINE void complete(UnitPiece piece, int count, Repair repair) const {
    if (rest_count_ > 0) add_rest(piece, count);
    if (are_finite(load(piece.sums), load(piece.sums + (count - 1) * kSumsStride))) return;
    for (int r = 0; r < count; ++r) {
      heal(piece.row + r, piece.v, piece.sums + r * kSumsStride);
      repair(piece.row + r, piece.v, piece.sums + r * kSumsStride);
    }
  }

  DYNCP_INLINE void complete(UnitPiece piece, int count) const {
    complete(piece, count, [](int64_t, int, float*) {});
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

  template <class Beside>
  DYNCP_INLINE void multiply_block(int64_t block, int v, float* sums, Beside& beside) const {
    // The intrinsics do not tell the compiler that they read memory.
    __asm__ volatile("" ::: "memory");
    const int64_t steps = unit_steps(depth_), row_tile = steps * kRowPieces * kUnitElements;
    const uint16_t* w = rows_ + 2 * block * row_tile;
    // Inlined, so that what is done beside the unit stays in registers.
    const auto run = [&](auto row_tiles, auto frame_tiles) __attribute__((always_inline)) {
      multiply_units<decltype(row_tiles)::value, decltype(frame_tiles)::value, kRowPieces, kFramePieces>(
          w, row_tile, frames_->at(v), steps, sums, spread_.rows, beside);
    };
    const bool has_two_rows = 2 * block + 1 < spread_.tiles, has_two_frames = v + 1 < frames_->vectors;
    if (has_two_rows && has_two_frames) {
      run(Count<2>(), Count<2>());
    } else if (has_two_rows) {
      run(Count<2>(), Count<1>());
    } else if (has_two_frames) {
      run(Count<1>(), Count<2>());
    } else {
      run(Count<1>(), Count<1>());
    }
    __asm__ volatile("" ::: "memory");
  }

  __attribute__((noinline)) void add_rest(UnitPiece piece, int count) const {
    const float* values = frames_->rest() + piece.v * kUnitFrames;
    for (int r = 0; r < count; ++r) {
      const float* w = rest_ + (piece.row + r) * kMostRest;
      Vec<float> sum = load(piece.sums + r * kSumsStride);
      for (int64_t k = 0; k < rest_count_; ++k) sum = broadcast(w[k]) * load(values + k * kTile) + sum;
      store(piece.sums + r * kSumsStride, sum);
    }
  }

  // Computes the sums of a row that are not finite again, as products of floats.
  __attribute__((noinline)) void heal(int64_t row, int v, float* sums) const {
    float again[kUnitFrames];
    const float* w = w_ + offsets_[row];
    product_block<float>(1, &w, has_columns_ ? columns_ : nullptr, depth_, frames_->whole() + v * kUnitFrames, 1,
                         StoreSums<float>{again, kUnitFrames});
    const Vec<float> sum = load(sums);
    store(sums, select(sum - sum == zero<float>(), sum, load(again)));
  }

  const Frames* frames_ = nullptr;  // of the product under way
  const float* w_ = nullptr;
  int64_t count_ = 0;
  int64_t depth_ = 0;
  bool has_columns_ = false;
  int64_t rest_count_ = 0;  // columns behind the last step
  UnitRows spread_{0};
  uint16_t* rows_;
  int64_t* offsets_;
  int64_t* columns_;
  float* rest_;  // [row][kMostRest]: weights behind the last step
  float* sums_;  // [two blocks][kSumsStride]
};

#endif

}  // namespace dyncp::DYNCP_ISA
