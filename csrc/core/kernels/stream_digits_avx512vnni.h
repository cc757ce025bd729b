// What stream_digits.h needs of the processor, by vpdpbusd.  One of its factors has no sign, so weights are taken 128
// larger, and sums begin with the opposite of what that adds.
#pragma once

#include "core/kernels/stream_vector.h"

namespace dyncp::DYNCP_ISA {

using Bytes = __m512i;
using Sums = __m512i;
constexpr int kFoursAtOnce = 1;  // of lines, in a pass of the loop

// Of `left` floats, or as many as there are lanes; the other lanes are zeros.
DYNCP_INLINE __m512 load_some(const float* p, int left) {
  const uint32_t lanes = left >= kWidth ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), p);
}

// All lanes joined to one, in every lane.
template <class Join>
DYNCP_INLINE Words joined(Words v, Join join) {
  v = join(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = join(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = join(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return join(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
}

DYNCP_INLINE float largest_magnitude(const float* values, int count) {
  __m512i most = _mm512_setzero_si512();
  for (int i = 0; i < count; i += kWidth) {
    const __m512i bits = _mm512_castps_si512(load_some(values + i, count - i));
    most = _mm512_maskz_max_epu32(0xffff, most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
  }
  return bits_as<Floats>(joined(bits_as<Words>(most), [](Words a, Words b) { return a > b ? a : b; }))[0];
}

DYNCP_INLINE Bytes load_bytes(const char* weights) {
  return _mm512_xor_si512(_mm512_loadu_si512(weights), _mm512_set1_epi8(-128));
}

DYNCP_INLINE Sums add_products(Sums sums, Bytes weights, Bytes digits) {
  return _mm512_dpbusd_epi32(sums, weights, digits);
}

// Digits in planes, one for the first digits and so on, with zeros behind the last.
class StoredDigits {
 public:
  DYNCP_INLINE StoredDigits(DigitOrder order, const float* values, int count, float inverse, int8_t* room)
      : planes_(room), plane_((count + 63) / 64 * 64) {
    const __m512 factor = _mm512_set1_ps(inverse);
    const __m512i half = _mm512_set1_epi8(-128);
    for (int digit = 0; digit < kDigits; ++digit) starts_[digit] = _mm512_setzero_si512();
    for (int first = 0; first < plane_; first += 64) {
      __m512i words[4];
      unrolled<4>([&](auto j) DYNCP_INLINED {
        const int i = first + kWidth * j;
        const __m512 scaled = _mm512_mul_ps(load_some(values + i, count - i), factor);
        words[j] = bits_as<__m512i>(digits_of(bits_as<Words>(_mm512_maskz_cvtps_epi32(0xffff, scaled))));
      });
      unrolled<kDigits>([&](auto digit) DYNCP_INLINED {
        __m512i bytes = _mm512_setzero_si512();
        if (order == DigitOrder::plain) {
          unrolled<4>([&](auto j) DYNCP_INLINED {
            const __m512i shifted = bits_as<__m512i>(bits_as<Words>(words[j]) >> 8 * digit);
            bytes = _mm512_mask_broadcast_i32x4(bytes, 0xf << 4 * j, _mm512_maskz_cvtepi32_epi8(0xffff, shifted));
          });
        } else {
          unrolled<4>([&](auto j) DYNCP_INLINED {
            const Words byte = bits_as<Words>(words[j]) >> 8 * digit & 0xff;
            bytes = _mm512_or_si512(bytes, bits_as<__m512i>(byte << 8 * j));
          });
        }
        _mm512_store_si512(planes_ + digit * plane_ + first, bytes);
        starts_[digit] = _mm512_dpbusd_epi32(starts_[digit], half, bytes);
      });
    }
    unrolled<kDigits>([&](auto digit) DYNCP_INLINED {
      Words added = bits_as<Words>(starts_[digit]);
      if (order == DigitOrder::plain) added = joined(added, [](Words a, Words b) { return a + b; });
      starts_[digit] = bits_as<__m512i>(Words{} - added);
    });
  }

  // Where the sums of products with a digit begin: lanes of outputs for plain digits, parts of one output for woven
  // ones.
  DYNCP_INLINE Sums start(int digit) const { return starts_[digit]; }
  // As many woven digits as a vector has bytes.
  DYNCP_INLINE Bytes woven(int digit, int first) const { return _mm512_load_si512(planes_ + digit * plane_ + first); }
  // Four plain digits, the first one a multiple of four, for every lane.
  template <int kDigit>
  DYNCP_INLINE Bytes plain(int first) const {
    int32_t digits;
    __builtin_memcpy(&digits, planes_ + kDigit * plane_ + first, sizeof(digits));
    return _mm512_set1_epi32(digits);
  }

 private:
  int8_t* planes_;
  int64_t plane_;
  __m512i starts_[kDigits];
};

// Four lines of woven weights, of 64 outputs each, to words with the four weights of an output: word 4 i + k of vector
// j is for output 16 k + 4 i + j.
DYNCP_INLINE void join_lines(const char* const* lines, Bytes* words) {
  __m512i r[4];
  unrolled<4>([&](auto i) DYNCP_INLINED { r[i] = load_bytes(lines[i]); });
  const __m512i low01 = _mm512_unpacklo_epi8(r[0], r[1]), high01 = _mm512_unpackhi_epi8(r[0], r[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(r[2], r[3]), high23 = _mm512_unpackhi_epi8(r[2], r[3]);
  words[0] = _mm512_unpacklo_epi16(low01, low23);
  words[1] = _mm512_unpackhi_epi16(low01, low23);
  words[2] = _mm512_unpacklo_epi16(high01, high23);
  words[3] = _mm512_unpackhi_epi16(high01, high23);
}

// Results for such words to vectors of the outputs in order.
DYNCP_INLINE void order_outputs(const Floats* of_words, Floats* ordered) {
  // Pairs of words, then fours.
  const Floats low02 = lower_lanes(of_words[0], of_words[2]), high02 = upper_lanes(of_words[0], of_words[2]);
  const Floats low13 = lower_lanes(of_words[1], of_words[3]), high13 = upper_lanes(of_words[1], of_words[3]);
  ordered[0] = lower_lanes(low02, low13);
  ordered[1] = upper_lanes(low02, low13);
  ordered[2] = lower_lanes(high02, high13);
  ordered[3] = upper_lanes(high02, high13);
}

// Lane r < count of the result is row r times the activations of `x`, in woven digits.
template <class X>
DYNCP_INLINE Floats multiply_rows_of_bytes(const X& x, const char* const* rows, int count, int length) {
  constexpr int kRows = 8;
  Floats sums[kWidth];
  unrolled<kWidth / kRows>([&](auto group) DYNCP_INLINED {
    Floats* part = sums + group * kRows;
    unrolled<kRows>([&](auto r) DYNCP_INLINED { part[r] = zero<float>(); });
    if (group * kRows >= count) return;
    Sums parts[kRows][kDigits];
    x.template sum_bytes<kRows>(rows + group * kRows, length, parts);
    unrolled<kRows>([&](auto r) DYNCP_INLINED { part[r] = x.sum_of_digits(parts[r]); });
  });
  return x.factor() * sum_of_rows(sums);
}

}  // namespace dyncp::DYNCP_ISA
