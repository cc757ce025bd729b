// Short-time Fourier transform of one hop and back: window, real transform of n_fft samples as a complex one of half
// the size (Stockham's autosort form, radix 4 with a last pass of radix 2 where the size asks for it), compressed
// magnitudes.
#include "core/kernels/stream_math.h"
#include "core/kernels/stream_step.h"

namespace dyncp::DYNCP_ISA {
namespace {

struct Complex {
  float *re, *im;
};

// A pass works on vectors where enough transforms lie side by side, else on single values.
template <bool kVector>
struct PassType {
  using type = float;
};
template <>
struct PassType<true> {
  using type = Floats;
};
template <class V>
DYNCP_INLINE V pass_load(const float* p) {
  V value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}
template <class V>
DYNCP_INLINE void pass_store(float* p, V value) {
  __builtin_memcpy(p, &value, sizeof(value));
}

// One pass of radix 4: transforms of length n, s of them interleaved.
template <bool kVector>
DYNCP_INLINE void pass_of_four(Complex from, Complex to, int n, int s, const float* twiddles) {
  using V = typename PassType<kVector>::type;
  constexpr int kStep = kVector ? kWidth : 1;
  const int quarter = n / 4;
  const int64_t gap = int64_t{quarter} * s;
  for (int p = 0; p < quarter; ++p) {
    const float c1 = twiddles[p], s1 = twiddles[quarter + p];
    const float c2 = twiddles[2 * quarter + p], s2 = twiddles[3 * quarter + p];
    const float c3 = twiddles[4 * quarter + p], s3 = twiddles[5 * quarter + p];
    for (int q = 0; q < s; q += kStep) {
      const float *re = from.re + q + int64_t{s} * p, *im = from.im + q + int64_t{s} * p;
      float *re_to = to.re + q + int64_t{4} * s * p, *im_to = to.im + q + int64_t{4} * s * p;
      const V ar = pass_load<V>(re), ai = pass_load<V>(im);
      const V br = pass_load<V>(re + gap), bi = pass_load<V>(im + gap);
      const V cr = pass_load<V>(re + 2 * gap), ci = pass_load<V>(im + 2 * gap);
      const V dr = pass_load<V>(re + 3 * gap), di = pass_load<V>(im + 3 * gap);
      const V sum_r = ar + cr, sum_i = ai + ci, difference_r = ar - cr, difference_i = ai - ci;
      const V other_r = br + dr, other_i = bi + di, turned_r = di - bi, turned_i = br - dr;  // i (b - d)
      pass_store(re_to, sum_r + other_r);
      pass_store(im_to, sum_i + other_i);
      const V r1 = difference_r - turned_r, i1 = difference_i - turned_i;
      pass_store(re_to + s, r1 * c1 - i1 * s1);
      pass_store(im_to + s, r1 * s1 + i1 * c1);
      const V r2 = sum_r - other_r, i2 = sum_i - other_i;
      pass_store(re_to + 2 * s, r2 * c2 - i2 * s2);
      pass_store(im_to + 2 * s, r2 * s2 + i2 * c2);
      const V r3 = difference_r + turned_r, i3 = difference_i + turned_i;
      pass_store(re_to + 3 * s, r3 * c3 - i3 * s3);
      pass_store(im_to + 3 * s, r3 * s3 + i3 * c3);
    }
  }
}

// The discrete Fourier transform of `size` complex values, a power of two; the result is in `a`.
void transform(Complex a, Complex b, int size, const float* twiddles) {
  int s = 1;
  const Complex home = a;
  for (int n = size; n >= 2;) {
    if (n == 2) {
      for (int q = 0; q < s; ++q) {
        const float ar = a.re[q], ai = a.im[q], br = a.re[q + s], bi = a.im[q + s];
        b.re[q] = ar + br;
        b.im[q] = ai + bi;
        b.re[q + s] = ar - br;
        b.im[q + s] = ai - bi;
      }
      n = 1;
    } else {
      if (s >= kWidth) {
        pass_of_four<true>(a, b, n, s, twiddles);
      } else {
        pass_of_four<false>(a, b, n, s, twiddles);
      }
      twiddles += 6 * (n / 4);
      n /= 4;
      s *= 4;
    }
    const Complex swap = a;
    a = b;
    b = swap;
  }
  if (a.re != home.re) {
    for (int i = 0; i < size; ++i) {
      home.re[i] = a.re[i];
      home.im[i] = a.im[i];
    }
  }
}

struct Buffers {
  Complex a, b, spectrum;
};

DYNCP_INLINE Buffers buffers_of(const PackedHeader& h, void* state, int place) {
  float* work = at<float>(state, h.work);
  const int64_t part = h.geometry.n_fft / 2 + kPad;
  float* spectrum = at<float>(state, h.spectrum) + place * (2 * int64_t{h.bins_padded} + 2 * kPad);
  return {{work, work + part}, {work + 2 * part, work + 3 * part}, {spectrum, spectrum + h.bins_padded + kPad}};
}

}  // namespace

void analyse(const PackedHeader& h, void* state, int place, const float* samples) {
  const int size = h.geometry.n_fft, half = size / 2, hop = h.geometry.hop;
  float* history = at<float>(state, h.samples);
  for (int i = 0; i + hop < size; ++i) history[i] = history[i + hop];
  // What is no number, or overflows on its way through a network, is silence.
  for (int i = 0; i < hop; ++i)
    history[size - hop + i] = __builtin_fabsf(samples[i]) <= kLoudestSample ? samples[i] : 0.0f;
  const float* window = at<float>(&h, h.window);
  const Buffers buffers = buffers_of(h, state, place);
  for (int i = 0; i < half; ++i) {
    buffers.a.re[i] = history[2 * i] * window[2 * i];
    buffers.a.im[i] = history[2 * i + 1] * window[2 * i + 1];
  }
  transform(buffers.a, buffers.b, half, at<float>(&h, h.twiddles));
  // X[k] = E[k] + e^(-2 pi i k / n) O[k], with the transforms E, O of the even and odd samples from Z = E + i O.
  const float* cosine = at<float>(&h, h.real_twiddles);
  const float* sine = cosine + half / 2 + kPad;
  const Complex z = buffers.a, out = buffers.spectrum;
  out.re[half] = z.re[0] - z.im[0];
  out.im[half] = 0.0f;
  out.re[0] = z.re[0] + z.im[0];
  out.im[0] = 0.0f;
  for (int k = 1; k <= half / 2; ++k) {
    const int m = half - k;
    const float even_r = 0.5f * (z.re[k] + z.re[m]), even_i = 0.5f * (z.im[k] - z.im[m]);
    const float odd_r = 0.5f * (z.im[k] + z.im[m]), odd_i = 0.5f * (z.re[m] - z.re[k]);
    const float turned_r = odd_r * cosine[k] - odd_i * sine[k], turned_i = odd_r * sine[k] + odd_i * cosine[k];
    out.re[k] = even_r + turned_r;
    out.im[k] = even_i + turned_i;
    out.re[m] = even_r - turned_r;
    out.im[m] = turned_i - even_i;
  }
  float* features = at<float>(state, h.features) + int64_t{place} * h.bins_padded;
  for (int i = 0; i < h.bins_padded; i += kWidth) {
    const Floats re = load(out.re + i), im = load(out.im + i);
    store(features + i, power_of(square_root(re * re + im * im) + 1e-9f, h.geometry.compression));
  }
}

void synthesise(const PackedHeader& h, void* state, int place, float* samples) {
  const int size = h.geometry.n_fft, half = size / 2, hop = h.geometry.hop;
  const Buffers buffers = buffers_of(h, state, place);
  const Complex x = buffers.spectrum, z = buffers.a;
  const float* cosine = at<float>(&h, h.real_twiddles);
  const float* sine = cosine + half / 2 + kPad;
  const float* mask = at<float>(state, h.mask) + int64_t{place} * h.bins_padded;
  for (int i = 0; i <= half; ++i) {
    x.re[i] *= mask[i];
    x.im[i] *= mask[i];
  }
  // The inverse transform is the transform with real and imaginary parts exchanged, on both sides.
  z.im[0] = 0.5f * (x.re[0] + x.re[half]);
  z.re[0] = 0.5f * (x.re[0] - x.re[half]);
  for (int k = 1; k <= half / 2; ++k) {
    const int m = half - k;
    const float even_r = 0.5f * (x.re[k] + x.re[m]), even_i = 0.5f * (x.im[k] - x.im[m]);
    const float turned_r = 0.5f * (x.re[k] - x.re[m]), turned_i = 0.5f * (x.im[k] + x.im[m]);
    const float odd_r = turned_r * cosine[k] + turned_i * sine[k], odd_i = turned_i * cosine[k] - turned_r * sine[k];
    z.im[k] = even_r - odd_i;
    z.re[k] = even_i + odd_r;
    z.im[m] = even_r + odd_i;
    z.re[m] = odd_r - even_i;
  }
  transform(z, buffers.b, half, at<float>(&h, h.twiddles));
  const float* window = at<float>(&h, h.window);
  float* tail = at<float>(state, h.tail);
  // 1 / half undoes the transform; the squared windows of n_fft / hop frames add up to n_fft / hop / 2.
  const float scale = 2.0f * static_cast<float>(hop) / static_cast<float>(size) / static_cast<float>(half);
  for (int i = 0; i < half; ++i) {
    tail[2 * i] += z.im[i] * window[2 * i] * scale;
    tail[2 * i + 1] += z.re[i] * window[2 * i + 1] * scale;
  }
  for (int i = 0; i < hop; ++i) samples[i] = tail[i];
  for (int i = 0; i + hop < size; ++i) tail[i] = tail[i + hop];
  for (int i = size - hop; i < size; ++i) tail[i] = 0.0f;
}

}  // namespace dyncp::DYNCP_ISA
