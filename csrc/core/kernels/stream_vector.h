// Vector operations of the streaming kernels that simd.h does not have: weights of few bits widened by the
// processor's own conversions, sums of several vectors at once, comparisons as bits.
#pragma once

#include <type_traits>

#include "core/simd.h"
#include "core/stream_layout.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// For lambdas, behind their parameters: one that stays a function of its own keeps its sums in memory.
#define DYNCP_INLINED __attribute__((always_inline))

namespace dyncp::DYNCP_ISA {

template <int kValue>
struct Number {
  DYNCP_INLINE constexpr operator int() const { return kValue; }
};

// body(0), ..., body(kCount - 1) without a loop.  Compilers see sums in an array as registers only when all indices
// are constants early on; left to themselves they clear and store such an array in memory.
template <int kCount, class Body>
DYNCP_INLINE void unrolled(const Body& body) {
  if constexpr (kCount > 0) {
    unrolled<kCount - 1>(body);
    body(Number<kCount - 1>{});
  }
}

using Floats = Vec<float>;
using Integers = Mask<float>;
constexpr int kWidth = kLanes<float>;

// A vector of kPad weights is this many of ours.
constexpr int kParts = kPad / kWidth;

DYNCP_INLINE Floats load_floats(const float* p) { return load(p); }

DYNCP_INLINE Floats load_floats(const Half* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
#else
  return load(p);
#endif
}

DYNCP_INLINE Words load_words(const char* p) {
  Words words;
  __builtin_memcpy(&words, p, sizeof(words));
  return words;
}

// The same vector in a register: GCC would load it again for each use.
template <class Vector>
DYNCP_INLINE Vector loaded_once(Vector v) {
#if defined(__AVX2__)
  __asm__("" : "+v"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}

DYNCP_INLINE Floats floats_of(Words words) {
  return __builtin_convertvector(reinterpret_cast<Integers>(words), Floats);
}

// The fourth vector of four of 24 bits.
DYNCP_INLINE Words last_of_four(Words a, Words b, Words c) {
#if defined(__AVX512F__)
  const __m512i from_a =
      _mm512_maskz_broadcast_i32x4(0xffff, _mm_set_epi8(12, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0));
  const __m512i from_b =
      _mm512_maskz_broadcast_i32x4(0xffff, _mm_set_epi8(0, 12, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0));
  const __m512i from_c =
      _mm512_maskz_broadcast_i32x4(0xffff, _mm_set_epi8(0, 0, 12, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0, 0, 0, 0));
  __m512i words = _mm512_maskz_shuffle_epi8(0x8888888888888888, reinterpret_cast<__m512i>(a), from_a);
  words = _mm512_mask_shuffle_epi8(words, 0x4444444444444444, reinterpret_cast<__m512i>(b), from_b);
  words = _mm512_mask_shuffle_epi8(words, 0x2222222222222222, reinterpret_cast<__m512i>(c), from_c);
  return reinterpret_cast<Words>(words);
#else
  return a << 24 | (b & 0xff) << 16 | (c & 0xff) << 8;
#endif
}

// Byte `place` of every word, with its sign, at the top of an otherwise empty one.
DYNCP_INLINE Words byte_of(Words words, int place) {
  if (place == 0) return words << 24;
  if (place == 3) return words & 0xff000000;
  // One instruction where bytes can be shuffled.
#if defined(__AVX2__)
  const __m128i from =
      _mm_set_epi8(place + 12, -1, -1, -1, place + 8, -1, -1, -1, place + 4, -1, -1, -1, place, -1, -1, -1);
#endif
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_maskz_shuffle_epi8(~uint64_t{0}, reinterpret_cast<__m512i>(words),
                                                           _mm512_maskz_broadcast_i32x4(0xffff, from)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(
      _mm256_shuffle_epi8(reinterpret_cast<__m256i>(words), _mm256_broadcastsi128_si256(from)));
#elif defined(__aarch64__)
  const auto first = static_cast<uint8_t>(place), second = static_cast<uint8_t>(place + 4);
  const auto third = static_cast<uint8_t>(place + 8), fourth = static_cast<uint8_t>(place + 12);
  const uint8x16_t from = {255, 255, 255, first, 255, 255, 255, second, 255, 255, 255, third, 255, 255, 255, fourth};
  return reinterpret_cast<Words>(vqtbl1q_u8(reinterpret_cast<uint8x16_t>(words), from));
#else
  return (words << (24 - 8 * place)) & 0xff000000;
#endif
}

// This part of kCount vectors of kPad weights of a row, from `vector` on: four, where it is a multiple of four, or one
// of those left over.
template <Precision P, int kCount>
DYNCP_INLINE void load_weights(const char* row, int vector, int part, Floats* w) {
  static_assert(kCount == 4 || kCount == 1);
  constexpr int kFourBytes = static_cast<int>(row_bytes(P, 4 * kPad));
  const int four = vector / 4, rest = kCount == 4 ? 0 : vector % 4;
  const char* words = row + four * kFourBytes + part * kVectorBytes;
  if constexpr (P == Precision::int24) {
    // With 16 registers, loading again is faster than finding one.
    const auto load_next = [&](const char* p) DYNCP_INLINED {
      return kVectorRegisters == 32 ? loaded_once(load_words(p)) : load_words(p);
    };
    const Words a = load_next(words + rest * kLine);
    w[0] = floats_of(a);
    if constexpr (kCount == 4) {
      const Words b = load_next(words + kLine), c = load_next(words + 2 * kLine);
      w[1] = floats_of(b);
      w[2] = floats_of(c);
      w[3] = floats_of(last_of_four(a, b, c));
    }
  } else if constexpr (P == Precision::int8) {
    unrolled<kCount>([&](auto j) { w[j] = floats_of(byte_of(load_words(words), rest + j)); });
  } else if constexpr (P == Precision::bfloat16) {
    // What stands below a weight in the upper half only extends its mantissa.
    if constexpr (kCount == 4) {
      unrolled<2>([&](auto pair) {
        const Words both = loaded_once(load_words(words + pair * kLine));
        w[2 * pair] = bits_as<Floats>(both << 16);
        w[2 * pair + 1] = bits_as<Floats>(both);
      });
    } else {
      const Words both = load_words(words + rest / 2 * kLine);
      w[0] = bits_as<Floats>(rest % 2 ? both : both << 16);
    }
  } else {
    using Element = std::conditional_t<P == Precision::float32, float, Half>;
    const auto* p = reinterpret_cast<const Element*>(row) + vector * kPad + part * kWidth;
    unrolled<kCount>([&](auto j) { w[j] = load_floats(p + j * kPad); });
  }
}

// Lane i of the result is the sum of the lanes of rows[i], i < kWidth: a tree that halves the number of vectors at
// every step, first inside groups of four lanes, then across the groups.
#if defined(__AVX512F__)
// Of each group of four lanes the lower two, or the upper two, of a and b in turn.
DYNCP_INLINE Floats lower_lanes(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
DYNCP_INLINE Floats upper_lanes(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
DYNCP_INLINE Floats sum_step1(Floats a, Floats b) { return lower_lanes(a, b) + upper_lanes(a, b); }
DYNCP_INLINE Floats sum_step2(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
DYNCP_INLINE Floats sum_of_four(const Floats* r) { return sum_step2(sum_step1(r[0], r[1]), sum_step1(r[2], r[3])); }
DYNCP_INLINE Floats sum_of_eight(const Floats* r) {
  const Floats a = sum_of_four(r), b = sum_of_four(r + 4);
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
// Of eight rows only, in the lower lanes.
DYNCP_INLINE Floats sum_of_eight_rows(const Floats* r) {
  const Floats a = sum_of_eight(r);
  return __builtin_shufflevector(a, a, 0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(a, a, 4, 5, 6, 7, 12, 13, 14, 15, 4, 5, 6, 7, 12, 13, 14, 15);
}
DYNCP_INLINE Floats sum_of_rows(const Floats* r) {
  const Floats a = sum_of_eight(r), b = sum_of_eight(r + 8);
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
#elif defined(__AVX2__)
DYNCP_INLINE Floats sum_step1(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
         __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
DYNCP_INLINE Floats sum_step2(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
         __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
DYNCP_INLINE Floats sum_of_rows(const Floats* r) {
  const Floats a = sum_step2(sum_step1(r[0], r[1]), sum_step1(r[2], r[3]));
  const Floats b = sum_step2(sum_step1(r[4], r[5]), sum_step1(r[6], r[7]));
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
#else
DYNCP_INLINE Floats sum_step1(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
DYNCP_INLINE Floats sum_of_rows(const Floats* r) {
  const Floats a = sum_step1(r[0], r[1]), b = sum_step1(r[2], r[3]);
  return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}
#endif

// Bit i is set where lane i is above zero.
DYNCP_INLINE uint32_t positive_bits(Floats v) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(zero<float>()), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(v > zero<float>())));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(v > zero<float>())));
#elif defined(__aarch64__)
  const uint32x4_t places = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(reinterpret_cast<uint32x4_t>(v > zero<float>()), places));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<uint32_t>(v[i] > 0) << i;
  return bits;
#endif
}

// Lanes of -1 where the bits from `first` on, a multiple of the width, are set.
DYNCP_INLINE Integers lanes_of(const uint16_t* bits, int first) {
  const int word = bits[first / kPad] >> (first % kPad);
#if defined(__AVX512F__)
  return reinterpret_cast<Integers>(_mm512_maskz_set1_epi32(static_cast<__mmask16>(word), -1));
#else
  Integers places{};
  for (int i = 0; i < kWidth; ++i) places[i] = 1 << i;
  return ((Integers{} + word) & places) != 0;
#endif
}

}  // namespace dyncp::DYNCP_ISA
