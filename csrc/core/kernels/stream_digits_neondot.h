// What stream_digits.h needs of the processor, by ARM's dot product: both factors have signs, so sums begin with zero,
// and one of them may be the same word for all lanes, out of any lane of a register.
#pragma once

#include "core/kernels/stream_vector.h"

namespace dyncp::DYNCP_ISA {

using Bytes = int8x16_t;
using Sums = int32x4_t;
// Fours of lines in a pass of the loop: two take 4 % of a frame's instructions away.  One four for twice as many
// outputs would take as many away, but not all of its 24 sums find registers.
constexpr int kFoursAtOnce = 2;

DYNCP_INLINE float largest_magnitude(const float* values, int count) {
  Words most = {};
  const auto take = [&](Floats v) DYNCP_INLINED {
    const Words magnitude = bits_as<Words>(v) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  };
  int i = 0;
  for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
    unrolled<4>([&](auto j) DYNCP_INLINED { take(load(values + i + j * kWidth)); });
  }
  for (; i + kWidth <= count; i += kWidth) take(load(values + i));
  if (i < count) take(load_first(values + i, count - i));
  return bits_as<float>(vmaxvq_u32(bits_as<uint32x4_t>(most)));
}

DYNCP_INLINE Bytes load_bytes(const void* p) {
  Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  return bytes;
}

// Four digits for every lane, out of a lane of their own.
template <int kLane>
struct FourDigits {
  int8x8_t lanes;
};

DYNCP_INLINE Sums add_products(Sums sums, Bytes weights, Bytes digits) { return vdotq_s32(sums, weights, digits); }
template <int kLane>
DYNCP_INLINE Sums add_products(Sums sums, Bytes weights, FourDigits<kLane> digits) {
  return vdotq_lane_s32(sums, weights, digits.lanes, kLane);
}

// Plain digits of four activations stand in half a vector, the lower digits in its first lane, with zeros behind the
// last activation; woven ones in two vectors for sixteen activations.
class StoredDigits {
 public:
  DYNCP_INLINE StoredDigits(DigitOrder order, const float* values, int count, float inverse, int8_t* room)
      : digits_(room) {
    const auto words_of = [&](Floats v) DYNCP_INLINED {
      return digits_of(bits_as<Words>(vcvtnq_s32_f32(bits_as<float32x4_t>(v * inverse))));
    };
    const auto put = [&](int8_t* to, auto bytes) DYNCP_INLINED { __builtin_memcpy(to, &bytes, sizeof(bytes)); };
    if (order == DigitOrder::plain) {
      const uint8x8_t from = {0, 4, 8, 12, 1, 5, 9, 13};
      const auto put_four = [&](int first, Floats v) DYNCP_INLINED {
        put(room + kDigits * first, vqtbl1_s8(bits_as<int8x16_t>(words_of(v)), from));
      };
      int i = 0;
      for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
        unrolled<4>([&](auto j) DYNCP_INLINED { put_four(i + j * kWidth, load(values + i + j * kWidth)); });
      }
      for (; i + kWidth <= count; i += kWidth) put_four(i, load(values + i));
      if (i < count) put_four(i, load_first(values + i, count - i));
      return;
    }
    // Sixteen digits of a line of woven weights, which may have less than four vectors of kPad weights.
    const auto put_sixteen = [&](int first, int part, auto vectors) DYNCP_INLINED {
      int8x16_t words[4];
      unrolled<4>([&](auto j) DYNCP_INLINED {
        const int i = first + j * kPad + part * kWidth;
        words[j] = bits_as<int8x16_t>(j < vectors ? words_of(load(values + i)) : Words{});
      });
      // Pairs of bytes with the same digit of two activations, then fours.
      const int16x8_t even01 = vreinterpretq_s16_s8(vtrn1q_s8(words[0], words[1]));
      const int16x8_t even23 = vreinterpretq_s16_s8(vtrn1q_s8(words[2], words[3]));
      const int16x8_t odd01 = vreinterpretq_s16_s8(vtrn2q_s8(words[0], words[1]));
      const int16x8_t odd23 = vreinterpretq_s16_s8(vtrn2q_s8(words[2], words[3]));
      int8_t* to = room + kDigits * (first + part * kVectorBytes);
      put(to, vtrn1q_s16(even01, even23));
      put(to + kVectorBytes, vtrn1q_s16(odd01, odd23));
    };
    int first = 0;
    for (; first + 4 * kPad <= count; first += 4 * kPad) {
      for (int part = 0; part < kParts; ++part) put_sixteen(first, part, Number<4>{});
    }
    if (first == count) return;
    for (int part = 0; part < kParts; ++part) put_sixteen(first, part, (count - first) / kPad);
  }

  // Where the sums of products with a digit begin.
  DYNCP_INLINE Sums start(int) const { return vdupq_n_s32(0); }
  // As many woven digits as a vector has bytes.
  DYNCP_INLINE Bytes woven(int digit, int first) const {
    return load_bytes(digits_ + kDigits * first + digit * kVectorBytes);
  }
  // Four plain digits, the first one a multiple of four, for every lane.
  template <int kDigit>
  DYNCP_INLINE FourDigits<kDigit> plain(int first) const {
    int8x8_t lanes;
    __builtin_memcpy(&lanes, digits_ + kDigits * first, sizeof(lanes));
    return {lanes};
  }

 private:
  const int8_t* digits_;
};

// Sixteen bytes of four lines of woven weights to words with the four weights of an output, in the order of outputs.
DYNCP_INLINE void join_lines(const char* const* lines, Bytes* words) {
  Bytes r[4];
  unrolled<4>([&](auto i) DYNCP_INLINED { r[i] = load_bytes(lines[i]); });
  const int16x8_t even01 = vreinterpretq_s16_s8(vtrn1q_s8(r[0], r[1]));
  const int16x8_t odd01 = vreinterpretq_s16_s8(vtrn2q_s8(r[0], r[1]));
  const int16x8_t even23 = vreinterpretq_s16_s8(vtrn1q_s8(r[2], r[3]));
  const int16x8_t odd23 = vreinterpretq_s16_s8(vtrn2q_s8(r[2], r[3]));
  words[0] = vreinterpretq_s8_s16(vtrn1q_s16(even01, even23));
  words[1] = vreinterpretq_s8_s16(vtrn1q_s16(odd01, odd23));
  words[2] = vreinterpretq_s8_s16(vtrn2q_s16(even01, even23));
  words[3] = vreinterpretq_s8_s16(vtrn2q_s16(odd01, odd23));
}

DYNCP_INLINE void order_outputs(const Floats* of_words, Floats* ordered) {
  unrolled<4>([&](auto v) DYNCP_INLINED { ordered[v] = of_words[v]; });
}

// Lane r < count of the result is row r times the activations of `x`, in woven digits.
template <class X>
DYNCP_INLINE Floats multiply_rows_of_bytes(const X& x, const char* const* rows, int, int length) {
  Sums parts[kWidth][kDigits], joined[kDigits];
  x.template sum_bytes<kWidth>(rows, length, parts);
  // Lanes are joined while they are integers: twice for four rows, where floats would be four conversions more.
  unrolled<kDigits>([&](auto digit) DYNCP_INLINED {
    const Sums pairs01 = vpaddq_s32(parts[0][digit], parts[1][digit]);
    joined[digit] = vpaddq_s32(pairs01, vpaddq_s32(parts[2][digit], parts[3][digit]));
  });
  return x.factor() * x.sum_of_digits(joined);
}

}  // namespace dyncp::DYNCP_ISA
