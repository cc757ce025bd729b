// Register-blocked product of a few weight rows with a tile of frames: lanes are frames, weights are broadcast.
//
// Products hand their sums over while they are in registers: finish(first, sums) gets an array [rows][vectors] of
// Vec<T> that begins at vector `first` of the tile.
#pragma once

#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

// Frames of a tile; a multiple of the widest panel of every instruction set.
#if defined(__AMX_BF16__)
constexpr int kTile = 64;
#else
constexpr int kTile = 48;
#endif

// Accumulators take kBlockRows * kPanelVectors registers; the rest hold a panel row and a broadcast weight.
constexpr int kBlockRows = kVectorRegisters == 32 ? 8 : 4;
#if (defined(__AVX2__) || defined(__aarch64__)) && !defined(__AMX_BF16__)
constexpr int kPanelVectors = 3;
#else
constexpr int kPanelVectors = 2;
#endif

// The usual end: sums go to rows of memory.
template <class T>
struct StoreSums {
  T* out;
  int64_t stride;

  template <int R, int V>
  DYNCP_INLINE void operator()(int first, const Vec<T> (&sums)[R][V]) const {
    // Unrolled by request: otherwise the sums go to memory twice.
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) store(out + r * stride + (first + v) * kLanes<T>, sums[r][v]);
    }
  }
};

// finish(first, sums), where sums[r][t] = sum over k of rows[r][column(k)] * values[k * stride + t], for R rows and V
// vectors of frames.  column(k) is columns[k], or k when there is no list.  Every (row, frame) is one chain of
// multiply-adds in the order of k, so its value does not depend on the block that it is computed in.
template <class T, int R, int V, bool kListed, class Finish>
void product_panel(const T* const* rows, const int64_t* columns, int64_t depth, const T* values, int64_t stride,
                   int first, const Finish& finish) {
  Vec<T> sums[R][V] = {};
  const T* w[R];
  for (int r = 0; r < R; ++r) w[r] = rows[r];
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> v[V];
    for (int j = 0; j < V; ++j) v[j] = load(values + k * stride + j * kLanes<T>);
    const int64_t column = kListed ? columns[k] : k;
    for (int r = 0; r < R; ++r) {
      const Vec<T> weight = broadcast(w[r][column]);
      for (int j = 0; j < V; ++j) sums[r][j] = weight * v[j] + sums[r][j];
    }
  }
  finish(first, sums);
}

#if defined(__AVX512F__)

// Up to so many frames behind the whole vectors of a clip are not worth a vector of their own.
constexpr int kTailFrames = 4;

// The same for four frames: lanes are four frames times four values of k, whose sums are added last.  The rest of a
// vector of sums is zeros.
template <int R, class Finish>
void product_tail(const float* const* rows, const int64_t*, int64_t depth, const float* values, int64_t stride,
                  int first, const Finish& finish) {
  const __m512i by_frames = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  __m512 products[R];
  for (int r = 0; r < R; ++r) products[r] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 4) {
    const int64_t left = depth - k;
    __m512 v = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      if (j < left) v = _mm512_mask_broadcast_f32x4(v, 0xf << 4 * j, _mm_loadu_ps(values + (k + j) * stride));
    }
    v = _mm512_maskz_permutexvar_ps(0xffff, by_frames, v);
    const __mmask8 exist = left >= 4 ? 0xf : (1 << left) - 1;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m128 four = _mm_maskz_loadu_ps(exist, rows[r] + k);
      products[r] = _mm512_fmadd_ps(_mm512_maskz_broadcast_f32x4(0xffff, four), v, products[r]);
    }
  }
  const __m512i first_of_four = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  Vec<float> sums[R][1];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vec<float> s = bits_as<Vec<float>>(products[r]);
    const Vec<float> pairs = s + __builtin_shufflevector(s, s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const Vec<float> all =
        pairs + __builtin_shufflevector(pairs, pairs, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    sums[r][0] = bits_as<Vec<float>>(_mm512_maskz_permutexvar_ps(0xf, first_of_four, bits_as<__m512>(all)));
  }
  finish(first, sums);
}

#endif

template <class T, bool kListed, class Finish>
struct ProductPanels {
  using Panel = void (*)(const T* const*, const int64_t*, int64_t, const T*, int64_t, int, const Finish&);
  static constexpr int kTail = 0;  // in place of a number of vectors

  template <int R>
  static Panel of_rows(int vectors) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == sizeof(float) && !kListed) {
      if (vectors == kTail) return product_tail<R, Finish>;
    }
#endif
    if constexpr (kPanelVectors == 3) {
      if (vectors == 3) return product_panel<T, R, 3, kListed, Finish>;
    }
    return vectors == 2 ? product_panel<T, R, 2, kListed, Finish> : product_panel<T, R, 1, kListed, Finish>;
  }

  static Panel of(int rows, int vectors) {
    if constexpr (kBlockRows == 8) {
      switch (rows) {
        case 8:
          return of_rows<8>(vectors);
        case 7:
          return of_rows<7>(vectors);
        case 6:
          return of_rows<6>(vectors);
        case 5:
          return of_rows<5>(vectors);
      }
    }
    switch (rows) {
      case 4:
        return of_rows<4>(vectors);
      case 3:
        return of_rows<3>(vectors);
      case 2:
        return of_rows<2>(vectors);
      default:
        return of_rows<1>(vectors);
    }
  }
};

// The same for all `vectors` vectors of a tile, values of which lie `stride` apart.  columns may be null.
template <class T, class Finish>
DYNCP_INLINE void product_block(int row_count, const T* const* rows, const int64_t* columns, int64_t depth,
                                const T* values, int vectors, const Finish& finish, int64_t stride = kTile) {
  for (int first = 0; first < vectors; first += kPanelVectors) {
    const int width = vectors - first < kPanelVectors ? vectors - first : kPanelVectors;
    const auto panel = columns != nullptr ? ProductPanels<T, true, Finish>::of(row_count, width)
                                          : ProductPanels<T, false, Finish>::of(row_count, width);
    panel(rows, columns, depth, values + first * kLanes<T>, stride, first, finish);
  }
}

// The same for `frames` frames: whole vectors, or the end of a clip.
template <class T, class Finish>
DYNCP_INLINE void product_frames(int row_count, const T* const* rows, const int64_t* columns, int64_t depth,
                                 const T* values, int64_t frames, const Finish& finish) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    const int64_t tail = frames % kLanes<T>;
    if (tail > 0 && tail <= kTailFrames && columns == nullptr) {
      const int vectors = static_cast<int>(frames / kLanes<T>);
      product_block<T>(row_count, rows, columns, depth, values, vectors, finish);
      using Panels = ProductPanels<T, false, Finish>;
      const auto end = Panels::of(row_count, Panels::kTail);
      return end(rows, columns, depth, values + vectors * kLanes<T>, kTile, vectors, finish);
    }
  }
#endif
  product_block<T>(row_count, rows, columns, depth, values, whole_vectors<T>(frames), finish);
}

// The rows of a product: w[r] = row(r).  One at a time: compilers would collect indices in memory to load them as
// vectors, and such a load waits until all its parts are stored (measured: 1 % of a network).
template <class T, class Row>
DYNCP_INLINE void list_rows(int count, const T** w, Row row) {
  for (int r = 0; r < count; ++r) {
    w[r] = row(r);
    asm("" : "+r"(w[r]));
  }
}

// Splits `count` rows into blocks of nearly equal size, so that no block is left with one row.
struct RowBlocks {
  explicit RowBlocks(int64_t count) : rows(count), blocks((count + kBlockRows - 1) / kBlockRows) {}
  int64_t begin(int64_t block) const { return rows * block / blocks; }
  int size(int64_t block) const { return static_cast<int>(begin(block + 1) - begin(block)); }
  int64_t rows;
  int64_t blocks;
};

}  // namespace dyncp::DYNCP_ISA
