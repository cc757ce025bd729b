// Products of 8-bit weights by the processor's sums of four products of bytes.
//
// The activations of a product become integers of 24 bits, in units of which the largest one has about 2^23, and the
// integers three digits of -128 to 127, lowest first.  Digits are multiplied and summed exactly, in 32 bits; only the
// three sums are rounded.  The instruction wants one factor without a sign, so weights are taken 128 larger, and sums
// begin with the opposite of what that adds.  Digits lie in planes, one for the first digits and so on, with zeros
// behind the last.
#pragma once

#include "core/kernels/stream_vector.h"

namespace dyncp::DYNCP_ISA {

// How digits stand in their planes.
enum class DigitOrder {
  plain,  // for panels and columns, whose outputs stand in lanes
  woven   // as the weights of a row: of 64 digits, the bytes of word i are those of the activations i, 16 + i, ...
};

#if defined(__AVX512VNNI__)

// All lanes joined to one, in every lane.
template <class Join>
DYNCP_INLINE Words joined(Words v, Join join) {
  v = join(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = join(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = join(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return join(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
}

// Activations as digits.
class Digits {
 public:
  // `planes` has room for kDigits planes of `count` digits, at a multiple of 64.
  DYNCP_INLINE Digits(DigitOrder order, const float* values, int count, int8_t* planes)
      : planes_(planes), plane_((count + 63) / 64 * 64) {
    const auto load_vector = [&](int i) DYNCP_INLINED {
      const int left = count - i;
      const uint32_t lanes = left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
      return _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), values + i);
    };
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < count; i += 16) {
      const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(load_vector(i)), _mm512_set1_epi32(0x7fffffff));
      most = _mm512_maskz_max_epu32(0xffff, most, magnitude);
    }
    const float largest =
        bits_as<Floats>(joined(bits_as<Words>(most), [](Words a, Words b) { return a > b ? a : b; }))[0];
    // Smaller ones are zeros in effect; with infinity or NaN among them, all results are NaN.
    constexpr float kLeast = 0x1p-100f, kMost = 0x7f0000;
    const bool is_zero = largest < kLeast;
    unit_ = is_zero ? 0.0f : largest / kMost + (largest - largest);
    const __m512 inverse = _mm512_set1_ps(is_zero ? 0.0f : kMost / largest);
    const __m512i half = _mm512_set1_epi8(-128);
    for (int digit = 0; digit < kDigits; ++digit) starts_[digit] = _mm512_setzero_si512();
    for (int first = 0; first < plane_; first += 64) {
      // Half of every digit's range more, so that no digit borrows from the next.
      __m512i words[4];
      unrolled<4>([&](auto j) DYNCP_INLINED {
        const __m512i integers = _mm512_maskz_cvtps_epi32(0xffff, _mm512_mul_ps(load_vector(first + 16 * j), inverse));
        words[j] = _mm512_xor_si512(_mm512_add_epi32(integers, _mm512_set1_epi32(0x808080)), half);
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

  // Sixty-four digits.
  DYNCP_INLINE __m512i load(int digit, int first) const { return _mm512_load_si512(planes_ + digit * plane_ + first); }
  // Four plain digits, the first one a multiple of four, in every lane.
  DYNCP_INLINE __m512i broadcast(int digit, int first) const {
    int32_t four;
    __builtin_memcpy(&four, planes_ + digit * plane_ + first, sizeof(four));
    return _mm512_set1_epi32(four);
  }
  // Where the sums of products with a digit begin: lanes of outputs for plain digits, parts of one output for woven
  // ones.
  DYNCP_INLINE __m512i start(int digit) const { return starts_[digit]; }
  // Sums of the digits' products to those of the activations', with the weights at the top of a word of 32 bits, as
  // everywhere.
  DYNCP_INLINE Floats value(const __m512i* sums) const {
    const auto digit = [&](int i) DYNCP_INLINED { return bits_as<Floats>(_mm512_maskz_cvtepi32_ps(0xffff, sums[i])); };
    return unit_ * 0x1p24f * (256.0f * (256.0f * digit(2) + digit(1)) + digit(0));
  }

 private:
  int8_t* planes_;
  int64_t plane_;
  float unit_;
  __m512i starts_[kDigits];
};

// Weights 128 larger, without a sign.
DYNCP_INLINE __m512i unsigned_bytes(__m512i weights) { return _mm512_xor_si512(weights, _mm512_set1_epi8(-128)); }

// Four lines of woven weights, of 64 outputs each, to words with the four weights of an output: word 4 i + k of vector
// j is for output 16 k + 4 i + j.
DYNCP_INLINE void join_lines(const char* const* lines, __m512i* words) {
  __m512i r[4];
  unrolled<4>([&](auto i) DYNCP_INLINED { r[i] = unsigned_bytes(_mm512_loadu_si512(lines[i])); });
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

// sums[0..3] = sum over i < count of activation i, in plain digits, times the 64 weights at line(i).
template <class Line>
DYNCP_INLINE void sum_lines(int count, Line line, const Digits& x, Floats* sums) {
  __m512i parts[4][kDigits];
  unrolled<4>([&](auto v) DYNCP_INLINED {
    unrolled<kDigits>([&](auto digit) DYNCP_INLINED { parts[v][digit] = x.start(digit); });
  });
  const auto add = [&](int i, const char* const* lines) DYNCP_INLINED {
    __m512i w[4];
    join_lines(lines, w);
    unrolled<kDigits>([&](auto digit) DYNCP_INLINED {
      const __m512i four = x.broadcast(digit, i);
      unrolled<4>([&](auto v) DYNCP_INLINED { parts[v][digit] = _mm512_dpbusd_epi32(parts[v][digit], w[v], four); });
    });
  };
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    const char* const lines[4] = {line(i), line(i + 1), line(i + 2), line(i + 3)};
    add(i, lines);
  }
  if (i < count) {
    // The digits behind the last one are zeros, whatever their weights.
    const char* lines[4];
    for (int j = 0; j < 4; ++j) lines[j] = line(i + j < count ? i + j : count - 1);
    add(i, lines);
  }
  Floats of_words[4];
  unrolled<4>([&](auto v) DYNCP_INLINED { of_words[v] = x.value(parts[v]); });
  order_outputs(of_words, sums);
}

// sums[r] = rows[r] times all activations, in woven digits, part by part: their sum is in all lanes together.
template <int kRows>
DYNCP_INLINE void multiply_bytes(const char* const* rows, const Digits& x, int length, Floats* sums) {
  __m512i parts[kRows][kDigits];
  unrolled<kRows>([&](auto r) DYNCP_INLINED {
    unrolled<kDigits>([&](auto digit) DYNCP_INLINED { parts[r][digit] = x.start(digit); });
  });
  for (int i = 0; i < length; i += 64) {
    unrolled<kRows>([&](auto r) DYNCP_INLINED {
      const __m512i w = unsigned_bytes(_mm512_loadu_si512(rows[r] + i));
      unrolled<kDigits>([&](auto digit) DYNCP_INLINED {
        parts[r][digit] = _mm512_dpbusd_epi32(parts[r][digit], w, x.load(digit, i));
      });
    });
  }
  unrolled<kRows>([&](auto r) DYNCP_INLINED { sums[r] = x.value(parts[r]); });
}

#endif

}  // namespace dyncp::DYNCP_ISA
