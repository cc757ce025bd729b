// The gate networks of the streaming engine: pooling, scores, and which channels each frame keeps.
#pragma once

#include "core/kernels/stream_products.h"

namespace dyncp::DYNCP_ISA {

// Next, or before where that is no finite number: a frame that holds NaN or overflows closes its own gates, and must
// not stay in a mean for ever.
DYNCP_INLINE Floats finite_or(Floats next, Floats before) {
  constexpr float kMost = 3.4028234e38f;
  return next <= kMost && next >= -kMost ? next : before;
}

// The pooled products from `first` on, of which `now` are those of this frame; `frames` came before it.  Pooling and
// the first product are both linear, so they may trade places: so few numbers stay in a register.
DYNCP_INLINE Floats pooled(const PackedHeader& h, const PackedBlock& b, void* state, int64_t frames, int first,
                           Floats now) {
  float* memory = at<float>(state, b.pool) + first;
  const int window = h.geometry.window;
  switch (h.geometry.pooling) {
    case StreamPooling::average: {
      // The mean rather than the sum, which would lose ever more digits in the course of a day.
      const Floats before = load(memory), next = before + 1.0f / static_cast<float>(frames + 1) * (now - before);
      store(memory, finite_or(next, before));
      return next;
    }
    case StreamPooling::exponential: {
      const float rate = static_cast<float>(2.0 / (window + 1));
      const Floats memorised = load(memory), before = frames == 0 ? now : memorised;
      Floats next = before + rate * (now - before);
      // What falls silent would decay into denormal numbers, which are slow.
      next = next < 1e-30f && next > -1e-30f ? zero<float>() : next;
      store(memory, finite_or(next, memorised));
      return next;
    }
    case StreamPooling::window: {
      store(memory + frames % window * h.gate_width_padded, now);
      Floats sum = load(memory);
      for (int row = 1; row < window; ++row) sum += load(memory + int64_t{row} * h.gate_width_padded);
      return sum / static_cast<float>(frames + 1 < window ? frames + 1 : window);
    }
  }
  __builtin_unreachable();
}

// Indices of the set bits of `units` words of 16 bits, padded with the last one to a whole vector.
DYNCP_INLINE int list_bits(const uint16_t* bits, int units, int32_t* list) {
  int count = 0;
  for (int unit = 0; unit < units; ++unit) {
#if defined(__AVX512F__)
    const __m512i indices = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm512_set1_epi32(unit * kPad));
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(bits[unit], indices));
    count += __builtin_popcount(bits[unit]);
#else
    for (uint32_t rest = bits[unit]; rest != 0; rest &= rest - 1) list[count++] = unit * kPad + __builtin_ctz(rest);
#endif
  }
  for (int i = count; count > 0 && i < count + kPad; ++i) list[i] = list[count - 1];
  return count;
}

// The first half of a gate network: what enters the product that gives the scores.
inline void reduce(const PackedHeader& h, const PackedBlock& b, void* state, int64_t frames, const float* x,
                   float* reduced) {
  const char* weights = at<char>(&h, b.gate_reduce.weights);
  const int64_t stride = row_bytes(kGatePrecision, h.channels_padded);
  const int width = h.geometry.gate_width;
  const Activations<kGatePrecision> activations(DigitOrder::woven, h, state, x, h.channels_padded);
  for (int first = 0; first < width; first += kWidth) {
    const char* rows[kWidth];
    for (int r = 0; r < kWidth; ++r) rows[r] = weights + least(first + r, width - 1) * stride;
    const Floats sums = multiply_rows<kGatePrecision>(rows, width - first, activations, h.channels_padded);
    const Floats means = pooled(h, b, state, frames, first, sums);
    store(reduced + first, relu<float>(finished<kGatePrecision>(means, &h, b.gate_reduce, first)));
  }
}

// The gates of a frame of a block.
struct FrameGates {
  uint16_t* bits;
  bool changed;  // against those of the frame before
  Kept kept;
};

DYNCP_INLINE int count_bits(const uint16_t* bits, int units) {
  int count = 0;
  for (int unit = 0; unit < units; ++unit) count += __builtin_popcount(bits[unit]);
  return count;
}

// Decides the gates of a frame; `before` are those of the frame before.
inline void decide(const PackedHeader& h, const PackedBlock& b, void* state, const float* reduced, float shift,
                   const FrameGates& before, FrameGates* gates) {
  const Geometry& g = h.geometry;
  const int units = h.gates_padded / kPad, out_units = g.gates_out ? h.channels_padded / kPad : 0;
  int changes = 0, kept = 0, kept_outputs = 0;
  const auto take = [&](int unit, uint32_t now) DYNCP_INLINED {
    changes |= now ^ before.bits[unit];
    kept += __builtin_popcount(now);
    if (unit == out_units - 1) kept_outputs = kept;
    gates->bits[unit] = static_cast<uint16_t>(now);
  };
  const auto take_scores = [&](const float* scores) DYNCP_INLINED {
    for (int unit = 0; unit < units; ++unit) {
      uint32_t now = 0;
      for (int lane = 0; lane < kPad; lane += kWidth) {
        now |= positive_bits(load(scores + unit * kPad + lane) + shift) << lane;
      }
      take(unit, now);
    }
  };
  if (g.gate_kind != GateKind::pooled) {
    take_scores(at<float>(&h, b.gate_expand.bias));
  } else if constexpr (kWidth == kPad) {
    multiply_panels<kGatePrecision>(h, state, b.gate_expand, reduced, [&](int place, Floats sum) DYNCP_INLINED {
      take(place / kPad, positive_bits(sum + shift));
    });
  } else {
    float* scores = at<float>(state, h.scores);
    multiply_panels<kGatePrecision>(h, state, b.gate_expand, reduced,
                                    [&](int place, Floats sum) { store(scores + place, sum); });
    take_scores(scores);
  }
  gates->changed = changes != 0;
  gates->kept = {kept - kept_outputs, kept_outputs};
}

inline void list_kept(const PackedHeader& h, const PackedBlock& b, void* state, const uint16_t* bits) {
  const Geometry& g = h.geometry;
  const int out_units = g.gates_out ? h.channels_padded / kPad : 0;
  if (g.gates_out) list_bits(bits, out_units, at<int32_t>(state, b.out_list));
  if (g.gates_hidden) list_bits(bits + out_units, h.hidden_padded / kPad, at<int32_t>(state, b.hidden_list));
}

}  // namespace dyncp::DYNCP_ISA
