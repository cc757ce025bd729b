// Products of 8-bit weights by the processor's sums of four products of bytes.
//
// The activations of a product become integers of 16 bits, in units of which the largest one has about 2^15, and the
// integers two digits of -128 to 127, lowest first.  Digits are multiplied and summed exactly, in 32 bits.  What that
// rounds off an activation, 2^-16 of the largest one, is little beside what 8 bits round off a weight, 2^-8 of the
// largest of its output; a third digit would take half as many products more for nothing that shows beside these.
//
// How digits are stored and multiplied is the processor's: stream_digits_avx512vnni.h, stream_digits_neondot.h.
#pragma once

#include "core/kernels/stream_vector.h"

namespace dyncp::DYNCP_ISA {

// Which activations share a word of four digits.
enum class DigitOrder {
  plain,  // four in a row: for panels and columns, whose outputs stand in lanes
  woven   // as the weights of a row: of 64 digits, the bytes of word i are those of the activations i, 16 + i, ...
};

// Words whose lower two bytes are the digits of integers: half of the lower digit's range more, so that it does not
// borrow from the upper one.
DYNCP_INLINE Words digits_of(Words integers) { return (integers + 0x80) ^ 0x80; }

}  // namespace dyncp::DYNCP_ISA

#if defined(__AVX512VNNI__)
#define DYNCP_MULTIPLIES_BYTES
#include "core/kernels/stream_digits_avx512vnni.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#define DYNCP_MULTIPLIES_BYTES
#include "core/kernels/stream_digits_neondot.h"
#endif

namespace dyncp::DYNCP_ISA {

#if defined(DYNCP_MULTIPLIES_BYTES)

// Whether products take activations as digits.
template <Precision P>
constexpr bool kTakesDigits = P == Precision::int8;

// Activations as digits.
class Digits {
 public:
  // `room` is that of a state for digits.  Woven activations are a multiple of kPad.
  DYNCP_INLINE Digits(DigitOrder order, const float* values, int count, int8_t* room)
      : Digits(order, values, count, largest_magnitude(values, count), room) {}

  // sums[0..3] = sum over i < count of activation i, in plain digits, times a vector's bytes of weights at line(i).
  template <class Line>
  DYNCP_INLINE void sum_lines(int count, Line line, Floats* sums) const {
    Sums parts[4][kDigits];
    unrolled<4>([&](auto v) DYNCP_INLINED {
      unrolled<kDigits>([&](auto digit) DYNCP_INLINED { parts[v][digit] = stored_.start(digit); });
    });
    const auto add = [&](int i, const char* const* lines) DYNCP_INLINED {
      Bytes w[4];
      join_lines(lines, w);
      unrolled<kDigits>([&](auto digit) DYNCP_INLINED {
        const auto four = stored_.template plain<digit>(i);
        unrolled<4>([&](auto v) DYNCP_INLINED { parts[v][digit] = add_products(parts[v][digit], w[v], four); });
      });
    };
    const auto add_four = [&](int i) DYNCP_INLINED {
      const char* const lines[4] = {line(i), line(i + 1), line(i + 2), line(i + 3)};
      add(i, lines);
    };
    int i = 0;
    for (; i + 4 * kFoursAtOnce <= count; i += 4 * kFoursAtOnce) {
      unrolled<kFoursAtOnce>([&](auto four) DYNCP_INLINED { add_four(i + 4 * four); });
    }
    for (; kFoursAtOnce > 1 && i + 4 <= count; i += 4) add_four(i);
    if (i < count) {
      // The digits behind the last one are zeros, whatever their weights.
      const char* lines[4];
      for (int j = 0; j < 4; ++j) lines[j] = line(i + j < count ? i + j : count - 1);
      add(i, lines);
    }
    Floats of_words[4];
    unrolled<4>([&](auto v) DYNCP_INLINED { of_words[v] = factor() * sum_of_digits(parts[v]); });
    order_outputs(of_words, sums);
  }

  // The same with weights that stand in words for four activations: `step` bytes from one four to the next, vectors a
  // line apart.
  template <int kVectors>
  DYNCP_INLINE void sum_fours(int count, const char* words, int64_t step, Floats* sums) const {
    Sums parts[kVectors][kDigits];
    unrolled<kVectors>([&](auto v) DYNCP_INLINED {
      unrolled<kDigits>([&](auto digit) DYNCP_INLINED { parts[v][digit] = stored_.start(digit); });
    });
    for (int i = 0; i < count; i += 4) {
      unrolled<kVectors>([&](auto v) DYNCP_INLINED {
        const Bytes w = load_bytes(words + v * kLine);
        unrolled<kDigits>([&](auto digit) DYNCP_INLINED {
          parts[v][digit] = add_products(parts[v][digit], w, stored_.template plain<digit>(i));
        });
      });
      words += step;
    }
    unrolled<kVectors>([&](auto v) DYNCP_INLINED { sums[v] = factor() * sum_of_digits(parts[v]); });
  }

  // parts[r] = rows[r], `length` woven weights, times all activations, in woven digits, part by part: their sum is in
  // all lanes together.
  template <int kRows>
  DYNCP_INLINE void sum_bytes(const char* const* rows, int length, Sums (*parts)[kDigits]) const {
    unrolled<kRows>([&](auto r) DYNCP_INLINED {
      unrolled<kDigits>([&](auto digit) DYNCP_INLINED { parts[r][digit] = stored_.start(digit); });
    });
    for (int line = 0; line < length; line += kLine) {
      unrolled<kLine / kVectorBytes>([&](auto vector) DYNCP_INLINED {
        const int i = line + vector * kVectorBytes;
        Bytes digits[kDigits];
        unrolled<kDigits>([&](auto digit) DYNCP_INLINED { digits[digit] = loaded_once(stored_.woven(digit, i)); });
        unrolled<kRows>([&](auto r) DYNCP_INLINED {
          const Bytes w = load_bytes(rows[r] + i);
          unrolled<kDigits>([&](auto digit)
                                DYNCP_INLINED { parts[r][digit] = add_products(parts[r][digit], w, digits[digit]); });
        });
      });
    }
  }

  // Sums of the digits' products to those of the integers'.
  static DYNCP_INLINE Floats sum_of_digits(const Sums* sums) {
    return 256.0f * floats_of(bits_as<Words>(sums[1])) + floats_of(bits_as<Words>(sums[0]));
  }
  // Times this they are those of the activations', with the weights at the top of a word of 32 bits, as everywhere.
  DYNCP_INLINE float factor() const { return unit_ * 0x1p24f; }

 private:
  // Smaller activations are zeros in effect.
  static constexpr float kLeast = 0x1p-100f, kMost = 0x7f00;

  // With infinity or NaN among the activations, all results are NaN.
  DYNCP_INLINE Digits(DigitOrder order, const float* values, int count, float largest, int8_t* room)
      : unit_(largest < kLeast ? 0.0f : largest / kMost + (largest - largest)),
        stored_(order, values, count, largest < kLeast ? 0.0f : kMost / largest, room) {}

  float unit_;
  StoredDigits stored_;
};

#else

template <Precision P>
constexpr bool kTakesDigits = false;

#endif

}  // namespace dyncp::DYNCP_ISA
