// Vectors of the native width, written once for all instruction sets on the GCC/Clang vector extensions.
//
// Only sources in csrc/core/kernels/ include this header: everything lives in namespace dyncp::<isa>, so that objects
// compiled for different sets never share a symbol.  For the same reason kernels use no std:: containers or
// algorithms: the linker could keep a copy of such a template that was compiled for a wider set than the processor has.
//
// a * b + c contracts to one fused multiply-add where the set has it (-ffp-contract=fast).
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef DYNCP_ISA
#error "simd.h belongs to sources in csrc/core/kernels/, which are compiled with DYNCP_ISA"
#endif

#define DYNCP_INLINE inline __attribute__((always_inline))

namespace dyncp::DYNCP_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

// Storage types of 16 bits; arithmetic is always done in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class Element, int kLanesOf>
struct VectorOf {
  typedef Element type __attribute__((vector_size(sizeof(Element) * kLanesOf)));
};

// Lanes of a native vector of float or double.
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
using Vec = typename VectorOf<T, kLanes<T>>::type;

// Lane-wise integers as wide as T: the type of comparisons of Vec<T>.
template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <class T>
using Mask = typename VectorOf<typename IntegerOf<T>::type, kLanes<T>>::type;

template <class T>
DYNCP_INLINE Vec<T> zero() {
  return Vec<T>{};
}

// Subtracting zero keeps the sign of a zero; adding it would not.
template <class T>
DYNCP_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

DYNCP_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
DYNCP_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

DYNCP_INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof(v)); }
DYNCP_INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof(v)); }

// The same bits as another type of the same size.
template <class To, class From>
DYNCP_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// Bits of IEEE half precision widened to float, exactly: shift the exponent and mantissa into place, then rescale by
// 2^112, which also turns half subnormals into normal floats.
template <class Bits32, class Floats>
DYNCP_INLINE Floats widen_half(Bits32 h) {
  const Bits32 magnitude = (h & 0x7fff) << 13;
  const Bits32 sign = (h & 0x8000) << 16;
  const Floats scaled = bits_as<Floats>(magnitude) * 0x1p112f;
  const Bits32 finite = bits_as<Bits32>(scaled);
  const Bits32 result = ((h & 0x7c00) == 0x7c00 ? (magnitude | 0x7f800000) : finite) | sign;
  return bits_as<Floats>(result);
}

// Float to half, to nearest even.  Subnormal results are rounded by the adder itself: adding 0.5 aligns the mantissa so
// that its last bit is worth 2^-24, the half subnormal step.
template <class Bits32, class Floats>
DYNCP_INLINE Bits32 narrow_half(Floats f) {
  const Bits32 bits = bits_as<Bits32>(f);
  const Bits32 sign = (bits >> 16) & 0x8000;
  const Bits32 magnitude = bits & 0x7fffffff;
  const Bits32 normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Floats aligned = bits_as<Floats>(magnitude) + 0.5f;
  const Bits32 subnormal = bits_as<Bits32>(aligned) - 0x3f000000;
  Bits32 result = magnitude < 0x38800000 ? subnormal : normal;
  result = magnitude >= 0x47800000 ? Bits32{} + 0x7c00 : result;
  result = magnitude > 0x7f800000 ? Bits32{} + 0x7e00 : result;
  return result | sign;
}

// Float to bfloat16, to nearest even; a NaN stays a NaN.
template <class Bits32, class Floats>
DYNCP_INLINE Bits32 narrow_bfloat16(Floats f) {
  const Bits32 bits = bits_as<Bits32>(f);
  const Bits32 rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
  return (bits & 0x7fffffff) > 0x7f800000 ? (((bits >> 16) & 0xffff) | 0x40) : rounded;
}

using HalfBits = VectorOf<uint16_t, kLanes<float>>::type;

DYNCP_INLINE Vec<float> load(const Half* p) {
  HalfBits h;
  __builtin_memcpy(&h, p, sizeof(h));
  return widen_half<Mask<float>, Vec<float>>(__builtin_convertvector(h, Mask<float>));
}
DYNCP_INLINE Vec<float> load(const BFloat16* p) {
  HalfBits h;
  __builtin_memcpy(&h, p, sizeof(h));
  const Mask<float> wide = __builtin_convertvector(h, Mask<float>) << 16;
  return bits_as<Vec<float>>(wide);
}
DYNCP_INLINE void store(Half* p, Vec<float> v) {
  const HalfBits h = __builtin_convertvector((narrow_half<Mask<float>, Vec<float>>(v)), HalfBits);
  __builtin_memcpy(p, &h, sizeof(h));
}
DYNCP_INLINE void store(BFloat16* p, Vec<float> v) {
  const HalfBits h = __builtin_convertvector((narrow_bfloat16<Mask<float>, Vec<float>>(v)), HalfBits);
  __builtin_memcpy(p, &h, sizeof(h));
}

// The first `count` lanes (0 <= count <= lanes); the others load as zero and are not stored.
template <class Storage>
DYNCP_INLINE auto load_first(const Storage* p, int64_t count) {
  Storage lanes[kVectorBytes / (sizeof(Storage) == 2 ? 4 : sizeof(Storage))] = {};
  __builtin_memcpy(lanes, p, count * sizeof(Storage));
  return load(lanes);
}
template <class Storage, class V>
DYNCP_INLINE void store_first(Storage* p, V v, int64_t count) {
  Storage lanes[kVectorBytes / (sizeof(Storage) == 2 ? 4 : sizeof(Storage))];
  store(lanes, v);
  __builtin_memcpy(p, lanes, count * sizeof(Storage));
}

// One value of any storage type, widened to the compute type.
DYNCP_INLINE float widen(float v) { return v; }
DYNCP_INLINE double widen(double v) { return v; }
DYNCP_INLINE float widen(Half v) { return load_first(&v, 1)[0]; }
DYNCP_INLINE float widen(BFloat16 v) { return load_first(&v, 1)[0]; }

// Bytes (0 or not 0) as a lane mask (0 or -1) for T.  GCC takes a conversion from bytes to wide lanes apart into
// scalars, so x86 names the instruction (zero-masked: the header of the plain form draws a warning).
template <class T>
DYNCP_INLINE Mask<T> load_mask(const uint8_t* p) {
  typename VectorOf<uint8_t, kLanes<T>>::type bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
#if defined(__AVX2__)
  __m128i low = _mm_setzero_si128();
  __builtin_memcpy(&low, &bytes, sizeof(bytes));
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return bits_as<Mask<T>>(_mm512_maskz_cvtepu8_epi32(0xffff, low)) != 0;
  } else {
    return bits_as<Mask<T>>(_mm512_maskz_cvtepu8_epi64(0xff, low)) != 0;
  }
#else
  if constexpr (sizeof(T) == 4) {
    return bits_as<Mask<T>>(_mm256_cvtepu8_epi32(low)) != 0;
  } else {
    return bits_as<Mask<T>>(_mm256_cvtepu8_epi64(low)) != 0;
  }
#endif
#else
  return __builtin_convertvector(bytes, Mask<T>) != 0;
#endif
}

// Whether a > b, one bit per lane.
template <class T>
DYNCP_INLINE uint64_t bits_greater(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_cmp_ps_mask(bits_as<__m512>(a), bits_as<__m512>(b), _CMP_GT_OQ);
  } else {
    return _mm512_cmp_pd_mask(bits_as<__m512d>(a), bits_as<__m512d>(b), _CMP_GT_OQ);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return static_cast<uint32_t>(_mm256_movemask_ps(bits_as<__m256>(a > b)));
  } else {
    return static_cast<uint32_t>(_mm256_movemask_pd(bits_as<__m256d>(a > b)));
  }
#else
  const Mask<T> greater = a > b;
  uint64_t bits = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) bits |= static_cast<uint64_t>(greater[lane] & 1) << lane;
  return bits;
#endif
}

// 1 / v to float precision; v is neither zero nor denormal nor close to the largest float.
DYNCP_INLINE Vec<float> reciprocal(Vec<float> v) {
#if defined(__AVX512F__)
  const Vec<float> estimate = bits_as<Vec<float>>(_mm512_maskz_rcp14_ps(0xffff, bits_as<__m512>(v)));
  return estimate * (2.0f - v * estimate);
#else
  return 1.0f / v;
#endif
}
DYNCP_INLINE Vec<double> reciprocal(Vec<double> v) { return 1.0 / v; }

// Selection, not multiplication: a NaN in the lane that is not taken never leaks.
template <class V, class M>
DYNCP_INLINE V select(M mask, V taken, V otherwise) {
  return mask ? taken : otherwise;
}

// Sum of the lanes, always in the same order (halving).
template <class T>
DYNCP_INLINE T sum_of_lanes(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// Words as wide as the lanes of a vector of floats.
using Words = VectorOf<uint32_t, kLanes<float>>::type;

#if defined(__AVX2__)

// A delay by at most kLanes<float> frames: lane i of the result is lane i - count of `now`, or the lane of `before`
// that comes before it.  As places in `before` and `now`, one behind the other.
DYNCP_INLINE Words delay(int64_t count) {
#if defined(__AVX512F__)
  const Words lanes = {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
#else
  const Words lanes = {8, 9, 10, 11, 12, 13, 14, 15};
#endif
  return lanes - static_cast<uint32_t>(count);
}
DYNCP_INLINE Vec<float> delayed(Vec<float> before, Vec<float> now, Words delay) {
#if defined(__AVX512F__)
  const __m512i from = bits_as<__m512i>(delay);
  return bits_as<Vec<float>>(_mm512_permutex2var_ps(bits_as<__m512>(before), from, bits_as<__m512>(now)));
#else
  const __m256i from = bits_as<__m256i>(delay);
  const __m256 of_before = _mm256_permutevar8x32_ps(bits_as<__m256>(before), from);
  const __m256 of_now = _mm256_permutevar8x32_ps(bits_as<__m256>(now), from);
  return bits_as<Vec<float>>(_mm256_blendv_ps(of_before, of_now, bits_as<__m256>(delay << 28)));
#endif
}

#endif

// Rectifiers as comparisons, so that a NaN passes through.  PReLU has one slope for all negative values.
template <class T>
DYNCP_INLINE Vec<T> relu(Vec<T> v) {
  return v < zero<T>() ? zero<T>() : v;
}
template <class T>
DYNCP_INLINE Vec<T> prelu(Vec<T> v, T slope) {
  return v < zero<T>() ? v * slope : v;
}

}  // namespace dyncp::DYNCP_ISA
