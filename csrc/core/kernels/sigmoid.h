// The logistic function of a vector, to a few units in the last place.
#pragma once

#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr int kTerms = 7;  // |r|^8 / 8! is below half a unit in the last place for |r| <= log(2) / 2
  static constexpr float kLargest = 88;
  static constexpr float kRounder = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  static constexpr int32_t kBias = 127;
  static constexpr int kMantissa = 23;
  static constexpr float kLog2High = 0x1.62e4p-1f;  // few bits, so that its product with an integer is exact
  static constexpr float kLog2Low = 0x1.7f7d1cp-20f;
};
template <>
struct Exponential<double> {
  static constexpr int kTerms = 13;
  static constexpr double kLargest = 708;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr int64_t kBias = 1023;
  static constexpr int kMantissa = 52;
  static constexpr double kLog2High = 0x1.62e42fefap-1;
  static constexpr double kLog2Low = 0x1.cf79abc9e3b39p-40;
};

template <class T>
constexpr T inverse_factorial(int k) {
  double product = 1;
  for (; k > 1; --k) product *= k;
  return static_cast<T>(1 / product);
}

// exp(v) for |v| <= kLargest - 1; beyond that the nearest such value, and a NaN stays one.
template <class T>
DYNCP_INLINE Vec<T> exponential(Vec<T> v) {
  using E = Exponential<T>;
  const Vec<T> highest = broadcast<T>(E::kLargest - 1);
  v = select(v > highest, highest, v);
  v = select(v < -highest, -highest, v);
  // exp(v) = 2^n exp(r), v = n log(2) + r.
  const Vec<T> rounder = broadcast<T>(E::kRounder);
  const Vec<T> shifted = v * T(0x1.71547652b82fep0) + rounder;
  const Vec<T> n = shifted - rounder;
  const Vec<T> r = (v - n * E::kLog2High) - n * E::kLog2Low;
  Vec<T> sum = broadcast<T>(inverse_factorial<T>(E::kTerms));
#pragma GCC unroll 16
  for (int k = E::kTerms - 1; k >= 0; --k) sum = sum * r + inverse_factorial<T>(k);
  const Mask<T> exponent = (bits_as<Mask<T>>(shifted) - bits_as<Mask<T>>(rounder) + E::kBias) << E::kMantissa;
  return sum * bits_as<Vec<T>>(exponent);
}

template <class T>
DYNCP_INLINE Vec<T> sigmoid(Vec<T> v) {
  return reciprocal(exponential<T>(-v) + T(1));
}

}  // namespace dyncp::DYNCP_ISA
