// Products for single frames, for channels that are open at few frames of a tile: lanes are channels.
#pragma once

#include "core/kernels/lane_matrix.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

// Frames whose sums run side by side: enough to hide the latency of a multiply-add.
constexpr int kFramesAtOnce = kLanes<float> < 8 ? kLanes<float> : 8;

template <class T, int kFrames>
DYNCP_INLINE void dot_frames(const T* w, int64_t depth, const T* values, int64_t stride, const int32_t* frames,
                             Vec<T>* sums) {
  const T* at[kFrames];
  Vec<T> partial[kFrames] = {};
#pragma GCC unroll 8
  for (int f = 0; f < kFrames; ++f) at[f] = values + frames[f] * stride;
  int64_t k = 0;
  for (; k + kLanes<T> <= depth; k += kLanes<T>) {
    const Vec<T> weights = load(w + k);
#pragma GCC unroll 8
    for (int f = 0; f < kFrames; ++f) partial[f] = weights * load(at[f] + k) + partial[f];
  }
  if (k < depth) {
    const Vec<T> weights = load_first(w + k, depth - k);
#pragma GCC unroll 8
    for (int f = 0; f < kFrames; ++f) partial[f] = weights * load(at[f] + k) + partial[f];
  }
#pragma GCC unroll 8
  for (int f = 0; f < kFrames; ++f) sums[f] = partial[f];
}

// results[f] = sum over k of w[k] * values[frames[f]][k] for the listed frames.  A row of values is `stride` long and
// zero behind `depth`.  results has room for whole vectors, and the list for as many repetitions of its last frame.
template <class T>
DYNCP_INLINE void listed_dots(const T* w, int64_t depth, const T* values, int64_t stride, const int32_t* frames,
                              int64_t count, T* results) {
  constexpr int lanes = kLanes<T>;
  constexpr int step = lanes < kFramesAtOnce ? lanes : kFramesAtOnce;
  for (int64_t begin = 0; begin < count; begin += lanes) {
    Vec<T> sums[lanes] = {};
#pragma GCC unroll 4
    for (int f = 0; f < lanes; f += step) {
      if (f == 0 || begin + f < count) dot_frames<T, step>(w, depth, values, stride, frames + begin + f, sums + f);
    }
    store(results + begin, sums_of_lanes<T>(sums));
  }
}

// Lists the frames whose bits are set, and repeats frame 0 up to a whole vector.
template <class T>
DYNCP_INLINE int64_t list_frames(uint64_t bits, int32_t* frames) {
  const int64_t count = __builtin_popcountll(bits);
#if defined(__AVX512F__)
  __m512i indices = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int32_t* to = frames;
  for (int t = 0; t < kTile; t += 16) {
    const __mmask16 some = static_cast<__mmask16>(bits >> t);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(some, indices));
    to += __builtin_popcount(some);
    indices = _mm512_add_epi32(indices, _mm512_set1_epi32(16));
  }
  _mm512_storeu_si512(to, _mm512_setzero_si512());
#else
  int64_t f = 0;
  for (; bits != 0; bits &= bits - 1) frames[f++] = __builtin_ctzll(bits);
  for (; f % kLanes<T> != 0; ++f) frames[f] = 0;
#endif
  return count;
}

// The other way round: values of the listed frames to their places in a row of kTile frames, zeros to all others.
template <class T>
DYNCP_INLINE void spread_frames([[maybe_unused]] uint64_t bits, const int32_t* frames, int64_t count, const T* values,
                                T* row) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    for (int t = 0; t < kTile; t += 16) {
      const __mmask16 some = static_cast<__mmask16>(bits >> t);
      _mm512_storeu_ps(row + t, _mm512_maskz_expand_ps(some, _mm512_loadu_ps(values)));
      values += __builtin_popcount(some);
    }
    return;
  }
#endif
  __builtin_memset(row, 0, kTile * sizeof(T));
  for (int64_t f = 0; f < count; ++f) row[frames[f]] = values[f];
}

// Transposes 64 x 64 bits: bit j of rows[i] becomes bit i of rows[j].
DYNCP_INLINE void transpose_bits(uint64_t* rows) {
  uint64_t mask = 0x00000000ffffffffu;
#pragma GCC unroll 1
  for (int step = 32; step > 0; step /= 2, mask ^= mask << step) {
    for (int base = 0; base < 64; base += 2 * step) {
      for (int i = base; i < base + step; ++i) {
        const uint64_t change = ((rows[i] >> step) ^ rows[i + step]) & mask;
        rows[i] ^= change << step;
        rows[i + step] ^= change;
      }
    }
  }
}

// sums[c] += z[i] * w[i][c] over the rows i whose bits are set; z values are z_stride apart, width is whole vectors.
template <class T>
DYNCP_INLINE void add_rows(const T* const* w, int64_t width, const T* z, int64_t z_stride, uint64_t rows, T* sums) {
  constexpr int kSums = 8;
  int64_t c = 0;
  for (; c + kSums * kLanes<T> <= width; c += kSums * kLanes<T>) {
    Vec<T> total[kSums];
#pragma GCC unroll 8
    for (int j = 0; j < kSums; ++j) total[j] = load(sums + c + j * kLanes<T>);
    for (uint64_t rest = rows; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctzll(rest);
      const T* row = w[i] + c;
      const Vec<T> factor = broadcast(z[i * z_stride]);
#pragma GCC unroll 8
      for (int j = 0; j < kSums; ++j) total[j] = factor * load(row + j * kLanes<T>) + total[j];
    }
#pragma GCC unroll 8
    for (int j = 0; j < kSums; ++j) store(sums + c + j * kLanes<T>, total[j]);
  }
  for (; c < width; c += kLanes<T>) {
    Vec<T> total = load(sums + c);
    for (uint64_t rest = rows; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctzll(rest);
      total = broadcast(z[i * z_stride]) * load(w[i] + c) + total;
    }
    store(sums + c, total);
  }
}

}  // namespace dyncp::DYNCP_ISA
