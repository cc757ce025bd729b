// Vector operations of the streaming kernels that simd.h does not have: weights of 8 and 16 bits widened by the
// processor's own conversions, sums of several vectors at once, gathers, comparisons as bits.
#pragma once

#include "core/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace dyncp::DYNCP_ISA {

struct Int8 {
  int8_t bits;
};

using Floats = Vec<float>;
using Integers = Mask<float>;
constexpr int kWidth = kLanes<float>;

DYNCP_INLINE Floats load_weights(const float* p) { return load(p); }

DYNCP_INLINE Floats load_weights(const Half* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
#else
  return load(p);
#endif
}

DYNCP_INLINE Floats load_weights(const BFloat16* p) { return load(p); }

DYNCP_INLINE Floats load_weights(const Int8* p) {
  typename VectorOf<int8_t, kWidth>::type bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(bytes))));
#else
  return __builtin_convertvector(__builtin_convertvector(bytes, Integers), Floats);
#endif
}

// Lane-wise sums of pairs: the tree of sum_of_rows.  Distance 1 and 2 work inside groups of four lanes, 4 and 8 on
// whole groups; after all of them, lane i holds the sum of row i.
template <int kDistance>
DYNCP_INLINE Floats sum_pairs(Floats a, Floats b) {
  Integers low{}, high{};
  for (int i = 0; i < kWidth; ++i) {
    if (kDistance == 1) {
      const int group = i & ~3, place = (i >> 1) & 1, from_b = (i & 1) * kWidth;
      low[i] = from_b + group + place;
      high[i] = from_b + group + place + 2;
    } else if (kDistance == 2) {
      const int group = i & ~3, place = i & 1, from_b = ((i >> 1) & 1) * kWidth;
      low[i] = from_b + group + place * 1;
      high[i] = from_b + group + place * 1;
    } else {
      const int groups = kWidth / 4, half = groups / 2 > 0 ? groups / 2 : 1, group = i / 4;
      const int from_b = (group / half) * kWidth;
      low[i] = from_b + (group % half) * 4 + (i & 3);
      high[i] = from_b + (group % half + half) * 4 + (i & 3);
    }
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Lane i of the result is the sum of the lanes of rows[i], i < kWidth.
DYNCP_INLINE Floats sum_of_rows(const Floats* rows);

// Values of base at the indices.
DYNCP_INLINE Floats gather(const float* base, const int32_t* indices) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_i32gather_ps(_mm512_loadu_si512(indices), base, 4));
#else
  Floats values{};
  for (int i = 0; i < kWidth; ++i) values[i] = base[indices[i]];
  return values;
#endif
}

// Bit i is set where lane i of the comparison is true.
DYNCP_INLINE uint32_t bits_of(Integers comparison) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(comparison));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(comparison)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(comparison)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= (comparison[i] & 1u) << i;
  return bits;
#endif
}

DYNCP_INLINE void prefetch(const char* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace dyncp::DYNCP_ISA
