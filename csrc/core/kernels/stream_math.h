// exp2, log2 and what is built on them, a vector at a time, to about 1e-7 (exp2, sigmoid) and 4e-7 (power) relative.
#pragma once

#include "core/kernels/stream_vector.h"

namespace dyncp::DYNCP_ISA {

// 2^v for |v| <= 126; larger magnitudes are held at that bound, a NaN stays one.
DYNCP_INLINE Floats exp2_of(Floats v) {
  v = v > 126.0f ? broadcast(126.0f) : v;
  v = v < -126.0f ? broadcast(-126.0f) : v;
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum.
  const Floats shifted = v + 0x1.8p23f;
  const Integers whole = bits_as<Integers>(shifted) - 0x4b400000;
  const Floats r = v - (shifted - 0x1.8p23f);
  Floats p = broadcast(1.5353362e-4f);
  p = p * r + 1.3398874e-3f;
  p = p * r + 9.6184373e-3f;
  p = p * r + 5.5503324e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314720e-1f;
  p = p * r + 1.0f;
  return p * bits_as<Floats>((whole + 127) << 23);
}

// log2 of positive normal numbers, as the exponent plus the series of atanh for the mantissa in [sqrt(1/2), sqrt(2)).
DYNCP_INLINE Floats log2_of(Floats v) {
  const Integers bits = bits_as<Integers>(v);
  const Integers exponent = (bits - 0x3f3504f3) >> 23;
  const Floats m = bits_as<Floats>(bits - (exponent << 23));
  const Floats s = (m - 1.0f) / (m + 1.0f);
  const Floats square = s * s;
  Floats p = broadcast(0.32059890f);  // 2 / (9 ln 2)
  p = p * square + 0.41219859f;       // 2 / (7 ln 2)
  p = p * square + 0.57707802f;       // 2 / (5 ln 2)
  p = p * square + 0.96179669f;       // 2 / (3 ln 2)
  p = p * square + 2.8853901f;        // 2 / ln 2
  return p * s + __builtin_convertvector(exponent, Floats);
}

// v^power for v >= 0 that is 0, normal, infinite or NaN.
DYNCP_INLINE Floats power_of(Floats v, float power) {
  const Floats result = exp2_of(log2_of(v) * power);
  return v < 0x1.fffffep127f ? result : v;
}

DYNCP_INLINE Floats square_root(Floats v) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
  for (int i = 0; i < kWidth; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

DYNCP_INLINE Floats sigmoid(Floats v) { return 1.0f / (1.0f + exp2_of(v * -1.44269504f)); }

}  // namespace dyncp::DYNCP_ISA
