#include "core/kernels/stream_step.h"

#include "core/kernels/stream_digits.h"
#include "core/kernels/stream_math.h"

namespace dyncp::DYNCP_ISA {
namespace {

// Rows whose products run side by side: as many accumulators hide the latency of a multiply-add.
constexpr int kRowsSideBySide = kWidth < 8 ? kWidth : 8;
// How far prefetching runs ahead; lists of rows are padded that far.
constexpr int kRowsAhead = kPad;

DYNCP_INLINE int least(int a, int b) { return a < b ? a : b; }

DYNCP_INLINE Floats activate(Floats v, float slope) { return prelu<float>(v, slope); }

// ---- activations

// Whether products take activations as digits.
#if defined(__AVX512VNNI__)
template <Precision P>
constexpr bool kTakesDigits = P == Precision::int8;
#else
template <Precision P>
constexpr bool kTakesDigits = false;
#endif

// Activations, prepared once for all rows of a product.
template <Precision P, bool = kTakesDigits<P>>
struct Activations {
  DYNCP_INLINE Activations(DigitOrder, const PackedHeader&, void*, const float* x, int) : values(x) {}
  const float* values;
};
#if defined(__AVX512VNNI__)
template <Precision P>
struct Activations<P, true> {
  DYNCP_INLINE Activations(DigitOrder order, const PackedHeader& h, void* state, const float* x, int count)
      : values(x), digits(order, x, count, at<int8_t>(state, h.digits)) {}
  const float* values;
  Digits digits;
};
#endif

// ---- products in which every output is wanted

// A piece of a row, as load_weights takes it apart: kUnits times the same part of kCount vectors of kPad weights.
template <Precision P, int kCount, int kUnits>
struct Tile {
  static constexpr int kVectors = kCount * kUnits, kVectorsOfUnit = kCount;
  int first, unit;

  DYNCP_INLINE int vector(int u) const { return first + (unit + u) / kParts * kCount; }
  DYNCP_INLINE int part(int u) const { return (unit + u) % kParts; }
  // Where our vector v of the tile stands among the values that the row is for.
  DYNCP_INLINE int place(int v) const { return (vector(v / kCount) + v % kCount) * kPad + part(v / kCount) * kWidth; }
  // Calls use(first vector, kCount vectors of weights) for every unit.
  template <class Use>
  DYNCP_INLINE void for_units(const char* row, Use use) const {
    unrolled<kUnits>([&](auto u) DYNCP_INLINED {
      Floats w[kCount];
      load_weights<P, kCount>(row, vector(u), part(u), w);
      use(Number<u * kCount>{}, w);
    });
  }
  DYNCP_INLINE void prefetch_row(const char* row) const {
    constexpr int kBytes = static_cast<int>(row_bytes(P, kCount * kPad));
    unrolled<kUnits>([&](auto u) DYNCP_INLINED {
      const char* place = row + row_bytes(P, vector(u) * kPad);
      unrolled<kBytes / kLine>([&](auto line) {
        if (part(u) == 0) __builtin_prefetch(place + line * kLine);
      });
    });
  }
};

// Calls `use` with tiles that together cover a row of `length` weights.
template <Precision P, int kUnits = 2, class Use>
DYNCP_INLINE void for_tiles(int length, Use use) {
  const int vectors = length / kPad, units = vectors / 4 * kParts;
  int unit = 0;
  for (; unit + kUnits <= units; unit += kUnits) use(Tile<P, 4, kUnits>{0, unit});
  for (; unit < units; ++unit) use(Tile<P, 4, 1>{0, unit});
  for (unit = 0; unit < vectors % 4 * kParts; ++unit) use(Tile<P, 1, 1>{vectors / 4 * 4, unit});
}

// Sums of every second product stand apart where the registers allow it: eight vectors alone just cover the latency of
// a multiply-add.
template <int kVectors>
constexpr int kChainsOf = 2 * kVectors <= kVectorRegisters / 2 ? 2 : 1;

// sums[v] = sum over i < count of activation i, x.values[index(i)], times the tile's weights of row(i).
template <Precision P, class Outputs, class Row, class Index>
DYNCP_INLINE void sum_rows(Outputs tile, int count, Row row, const Activations<P>& x, Index index, Floats* sums) {
#if defined(__AVX512VNNI__)
  if constexpr (kTakesDigits<P> && Outputs::kVectors == 4) {
    const int64_t offset = row_bytes(P, tile.place(0));
    return sum_lines(count, [&](int i) DYNCP_INLINED { return row(i) + offset; }, x.digits, sums);
  }
#endif
  constexpr int kVectors = Outputs::kVectors, kChains = kChainsOf<kVectors>;
  Floats others[kVectors];
  unrolled<kVectors>([&](auto v) DYNCP_INLINED { sums[v] = others[v] = zero<float>(); });
  const auto add = [&](Floats* to, int i) DYNCP_INLINED {
    // Weights of 24 bits are read and unpacked at about the same pace, and the processor does not look ahead far enough
    // to do both at once.  The others are bound by one of the two and only lose by prefetching.
    if (P == Precision::int24) tile.prefetch_row(row(i + kRowsAhead));
    const Floats factor = broadcast(x.values[index(i)]);
    // One piece after another: more weights at once would not stay in 16 registers.
    tile.for_units(row(i), [&](auto first, const Floats* w) DYNCP_INLINED {
      unrolled<Outputs::kVectorsOfUnit>([&](auto j) DYNCP_INLINED { to[first + j] += factor * w[j]; });
    });
  };
  int i = 0;
  for (; kChains == 2 && i + 1 < count; i += 2) {
    add(sums, i);
    add(others, i + 1);
  }
  for (; i < count; ++i) add(sums, i);
  unrolled<kVectors>([&](auto v) DYNCP_INLINED { sums[v] += others[v]; });
}

// scale * sum + bias of the outputs from `place` on; without a scale for floats.
template <Precision P>
DYNCP_INLINE Floats finished(Floats sum, const void* model, const PanelMatrix& matrix, int place) {
  const Floats bias = load(at<float>(model, matrix.bias) + place);
  return has_scales(P) ? sum * load(at<float>(model, matrix.scale) + place) + bias : sum + bias;
}

// Calls use(place, vector of outputs) for all of W x + bias.
template <Precision P, class Use>
DYNCP_INLINE void multiply_panels(const PackedHeader& h, void* state, const PanelMatrix& matrix, const float* values,
                                  Use use) {
  const Activations<P> x(DigitOrder::plain, h, state, values, matrix.inputs);
  const char* panel = at<char>(&h, matrix.weights);
  const int outputs = (matrix.outputs + kPad - 1) / kPad * kPad, inputs = matrix.inputs;
  for (int start = 0; start < outputs; start += kPanel) {
    const int width = least(kPanel, outputs - start);
    const int64_t step = row_bytes(P, width);
    for_tiles<P, kTakesDigits<P> ? 1 : 2>(width, [&](auto tile) DYNCP_INLINED {
      constexpr int kVectors = decltype(tile)::kVectors;
      Floats sums[kVectors];
      sum_rows<P>(
          tile, inputs, [&](int i) DYNCP_INLINED { return panel + i * step; }, x, [](int i) { return i; }, sums);
      unrolled<kVectors>([&](auto v) DYNCP_INLINED {
        const int place = start + tile.place(v);
        use(place, finished<P>(sums[v], &h, matrix, place));
      });
    });
    panel += inputs * step;
  }
}

// Sums of all frames of a chunk for the outputs of a tile.
template <int kVectors>
struct TileSums {
  Floats chains[kChainsOf<kVectors>][kTileFrames][kVectors];
};

// Adds rows [begin, end) of a panel, begin even, for kFrames frames and the outputs of one unit of the tile.
template <Precision P, int kFrames, class Outputs>
DYNCP_INLINE void add_rows(Outputs tile, int unit, const char* panel, int64_t step, int begin, int end,
                           const float* const* values, int frame, TileSums<Outputs::kVectors>& sums) {
  constexpr int kVectors = Outputs::kVectorsOfUnit, kSums = kFrames * kVectors;
  constexpr int kChains = kChainsOf<Outputs::kVectors>;
  // Where registers do not hold both chains, one comes after the other: the frames cover the latency.
  constexpr int kAtOnce = kSums * kChains <= kVectorRegisters / 2 ? kChains : 1;
  const float* x[kFrames];
  unrolled<kFrames>([&](auto f) DYNCP_INLINED { x[f] = values[frame + f]; });
  const auto place = [&](int chain, int v) DYNCP_INLINED -> Floats& {
    return sums.chains[chain][frame + v / kVectors][unit * kVectors + v % kVectors];
  };
  const auto add = [&](Floats* to, int i) DYNCP_INLINED {
    Floats w[kVectors];
    load_weights<P, kVectors>(panel + i * step, tile.vector(unit), tile.part(unit), w);
    unrolled<kFrames>([&](auto f) DYNCP_INLINED {
      const Floats factor = broadcast(x[f][i]);
      unrolled<kVectors>([&](auto v) DYNCP_INLINED { to[f * kVectors + v] += factor * w[v]; });
    });
  };
  unrolled<kChains / kAtOnce>([&](auto pass) DYNCP_INLINED {
    Floats parts[kAtOnce * kSums];
    unrolled<kAtOnce * kSums>(
        [&](auto v) DYNCP_INLINED { parts[v] = begin == 0 ? zero<float>() : place(pass + v / kSums, v % kSums); });
    int i = begin + pass;
    for (; i + kAtOnce <= end; i += kChains) {
      unrolled<kAtOnce>([&](auto chain) DYNCP_INLINED { add(parts + chain * kSums, i + chain); });
    }
    if (kAtOnce > 1 && i < end) add(parts, i);
    unrolled<kAtOnce * kSums>([&](auto v) DYNCP_INLINED { place(pass + v / kSums, v % kSums) = parts[v]; });
  });
}

// Frames that share weights in registers; unpacking takes some of these.
template <Precision P>
constexpr int kFramesAtOnce = kVectorRegisters == 32    ? 4
                              : P == Precision::float32 ? 3
                                                        : 2;
// Rows that stay in the nearest cache while one group of frames after the other reads them; for so many frames at once,
// the next cache does.
template <Precision P>
constexpr int kRowsAtOnce = kFramesAtOnce<P> == 4 ? 1 << 16 : 32;

// results[f] = W values[f] + bias.
template <Precision P>
void multiply_panels_together(const PackedHeader& h, const PanelMatrix& matrix, int frames, const float* const* values,
                              float* const* results) {
  constexpr int kMost = kFramesAtOnce<P>, kRows = kRowsAtOnce<P>;
  const char* panel = at<char>(&h, matrix.weights);
  const int outputs = (matrix.outputs + kPad - 1) / kPad * kPad, inputs = matrix.inputs;
  for (int start = 0; start < outputs; start += kPanel) {
    const int width = least(kPanel, outputs - start);
    const int64_t step = row_bytes(P, width);
    for_tiles<P>(width, [&](auto tile) DYNCP_INLINED {
      constexpr int kVectors = decltype(tile)::kVectors, kUnits = kVectors / decltype(tile)::kVectorsOfUnit;
      TileSums<kVectors> sums;
      for (int begin = 0; begin < inputs; begin += kRows) {
        const int end = least(begin + kRows, inputs);
        for (int u = 0; u < kUnits; ++u) {
          int f = 0;
          for (; f + kMost <= frames; f += kMost) add_rows<P, kMost>(tile, u, panel, step, begin, end, values, f, sums);
          if (kMost > 2 && f + 2 <= frames) {
            add_rows<P, 2>(tile, u, panel, step, begin, end, values, f, sums);
            f += 2;
          }
          if (f < frames) add_rows<P, 1>(tile, u, panel, step, begin, end, values, f, sums);
        }
      }
      for (int f = 0; f < frames; ++f) {
        for (int v = 0; v < kVectors; ++v) {
          Floats sum = sums.chains[0][f][v];
          if constexpr (kChainsOf<kVectors> == 2) sum += sums.chains[1][f][v];
          const int place = start + tile.place(v);
          store(results[f] + place, finished<P>(sum, &h, matrix, place));
        }
      }
    });
    panel += inputs * step;
  }
}

// Calls use(f, place, vector of outputs) for all of W values[f] + bias of every frame, the same numbers as
// multiply_panels gives; but weights are read once for all frames.  `results` are rows in between.
template <Precision P, class Use>
DYNCP_INLINE void multiply_panels_of_frames(const PackedHeader& h, void* state, const PanelMatrix& matrix, int frames,
                                            const float* const* values, float* const* results, Use use) {
  if (frames == 1 || kTakesDigits<P>) {
    for (int f = 0; f < frames; ++f) {
      multiply_panels<P>(h, state, matrix, values[f], [&](int place, Floats sum) { use(f, place, sum); });
    }
    return;
  }
  multiply_panels_together<P>(h, matrix, frames, values, results);
  for (int f = 0; f < frames; ++f) {
    for (int place = 0; place < matrix.outputs; place += kWidth) use(f, place, load(results[f] + place));
  }
}

// ---- products over rows that lie anywhere

// Lane r < count of the result is row r times x; `length` is a multiple of kPad.  With `kept` bits, lanes of the rows
// where a bit is 0 do not enter: there the weights may be anything.
template <Precision P, bool kMasked = false>
DYNCP_INLINE Floats multiply_rows(const char* const* rows, int count, const Activations<P>& x, int length,
                                  const uint16_t* kept = nullptr) {
  Floats sums[kWidth];
  unrolled<kWidth / kRowsSideBySide>([&](auto group) DYNCP_INLINED {
    Floats* part = sums + group * kRowsSideBySide;
    unrolled<kRowsSideBySide>([&](auto r) DYNCP_INLINED { part[r] = zero<float>(); });
    if (group * kRowsSideBySide >= count) return;
#if defined(__AVX512VNNI__)
    // Bytes are never NaN, and the activations of pruned channels are zeros.
    if constexpr (kTakesDigits<P>) {
      return multiply_bytes<kRowsSideBySide>(rows + group * kRowsSideBySide, x.digits, length, part);
    }
#endif
    for_tiles<P, 1>(length, [&](auto tile) DYNCP_INLINED {
      unrolled<kRowsSideBySide>([&](auto r) DYNCP_INLINED {
        tile.for_units(rows[group * kRowsSideBySide + r], [&](auto, const Floats* w) DYNCP_INLINED {
          unrolled<decltype(tile)::kVectors>([&](auto v) DYNCP_INLINED {
            const int place = tile.place(v);
            const Floats weights = kMasked ? select(lanes_of(kept, place), w[v], zero<float>()) : w[v];
            part[r] += load(x.values + place) * weights;
          });
        });
      });
    });
  });
  return sum_of_rows(sums);
}

// Products of listed rows wait in memory until the others have their places between them: one after another where the
// processor has an instruction that spreads a vector, else each at its own place.
#if defined(__AVX512F__)
DYNCP_INLINE void store_listed(float* products, const int32_t*, int first, int, Floats values) {
  store(products + first, values);
}
#else
DYNCP_INLINE void store_listed(float* products, const int32_t* list, int first, int count, Floats values) {
  float lanes[kWidth];
  store(lanes, values);
  for (int r = 0; r < count; ++r) products[list[first + r]] = lanes[r];
}
#endif

// Stores the products of the rows on the list, which multiply(rows, count) gives for a vector of them.
template <class Multiply>
DYNCP_INLINE void multiply_listed(const int32_t* list, int count, const char* weights, int64_t stride, float* products,
                                  Multiply multiply) {
  for (int first = 0; first < count; first += kWidth) {
    const char* rows[kWidth];
    for (int r = 0; r < kWidth; ++r) rows[r] = weights + list[first + r] * stride;
    const int filled = least(kWidth, count - first);
    store_listed(products, list, first, filled, multiply(rows, filled));
  }
}

// Calls use(place, mask of the bits, vector of products) for all places below `length`, where the lanes without a bit
// are anything, or skip(place) where none has a bit.
template <class Use, class Skip>
DYNCP_INLINE void for_spread(const uint16_t* bits, int length, const float* products, Use use, Skip skip) {
  for (int i = 0; i < length; i += kPad) {
    const uint32_t word = bits[i / kPad];
    if (word == 0) {
      for (int j = 0; j < kPad; j += kWidth) skip(i + j);
      continue;
    }
#if defined(__AVX512F__)
    const auto kept = static_cast<__mmask16>(word);
    use(i, lanes_of(bits, i), bits_as<Floats>(_mm512_maskz_expand_ps(kept, bits_as<__m512>(load(products)))));
    products += __builtin_popcount(word);
#else
    for (int j = 0; j < kPad; j += kWidth) use(i + j, lanes_of(bits, i + j), load(products + i + j));
#endif
  }
}

// ---- gates

// `frames` came before this one.
DYNCP_INLINE void pool(const PackedHeader& h, const PackedBlock& b, void* state, int64_t frames, const float* x,
                       float* pooled) {
  float* memory = at<float>(state, b.pool);
  const int length = h.channels_padded, window = h.geometry.window;
  switch (h.geometry.pooling) {
    case StreamPooling::average: {
      const float count = static_cast<float>(frames + 1);
      for (int i = 0; i < length; i += kWidth) {
        const Floats sum = load(memory + i) + load(x + i);
        store(memory + i, sum);
        store(pooled + i, sum / count);
      }
      return;
    }
    case StreamPooling::exponential: {
      const float rate = static_cast<float>(2.0 / (window + 1));
      for (int i = 0; i < length; i += kWidth) {
        const Floats now = load(x + i), before = frames == 0 ? now : load(memory + i);
        Floats next = before + rate * (now - before);
        // A channel that falls silent would decay into denormal numbers, which are slow.
        next = next < 1e-30f && next > -1e-30f ? zero<float>() : next;
        store(memory + i, next);
        store(pooled + i, next);
      }
      return;
    }
    case StreamPooling::window: {
      const float count = static_cast<float>(frames + 1 < window ? frames + 1 : window);
      float* slot = memory + frames % window * length;
      for (int i = 0; i < length; i += kWidth) {
        store(slot + i, load(x + i));
        Floats sum = load(memory + i);
        for (int row = 1; row < window; ++row) sum += load(memory + int64_t{row} * length + i);
        store(pooled + i, sum / count);
      }
      return;
    }
  }
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
void reduce(const PackedHeader& h, const PackedBlock& b, void* state, int64_t frames, const float* x, float* reduced) {
  float* pooled = at<float>(state, h.pooled);
  pool(h, b, state, frames, x, pooled);
  const char* weights = at<char>(&h, b.gate_reduce.weights);
  const int64_t stride = row_bytes(kGatePrecision, h.channels_padded);
  const int width = h.geometry.gate_width;
  const Activations<kGatePrecision> x_pooled(DigitOrder::woven, h, state, pooled, h.channels_padded);
  for (int first = 0; first < width; first += kWidth) {
    const char* rows[kWidth];
    for (int r = 0; r < kWidth; ++r) rows[r] = weights + least(first + r, width - 1) * stride;
    const Floats sums = multiply_rows<kGatePrecision>(rows, width - first, x_pooled, h.channels_padded);
    store(reduced + first, relu<float>(finished<kGatePrecision>(sums, &h, b.gate_reduce, first)));
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
void decide(const PackedHeader& h, const PackedBlock& b, void* state, const float* reduced, float shift,
            const FrameGates& before, FrameGates* gates) {
  const Geometry& g = h.geometry;
  const float* decided = at<float>(&h, b.gate_expand.bias);
  if (g.gate_kind == GateKind::pooled) {
    float* scores = at<float>(state, h.scores);
    multiply_panels<kGatePrecision>(h, state, b.gate_expand, reduced,
                                    [&](int place, Floats sum) { store(scores + place, sum); });
    decided = scores;
  }
  const int units = h.gates_padded / kPad, out_units = g.gates_out ? h.channels_padded / kPad : 0;
  int changes = 0;
  for (int unit = 0; unit < units; ++unit) {
    uint32_t now = 0;
    for (int lane = 0; lane < kPad; lane += kWidth) {
      now |= bits_of(load(decided + unit * kPad + lane) + shift > zero<float>()) << lane;
    }
    changes |= now ^ before.bits[unit];
    gates->bits[unit] = static_cast<uint16_t>(now);
  }
  gates->changed = changes != 0;
  gates->kept = before.kept;
  if (changes != 0) {
    gates->kept = {count_bits(gates->bits + out_units, units - out_units), count_bits(gates->bits, out_units)};
  }
}

void list_kept(const PackedHeader& h, const PackedBlock& b, void* state, const uint16_t* bits) {
  const Geometry& g = h.geometry;
  const int out_units = g.gates_out ? h.channels_padded / kPad : 0;
  if (g.gates_out) list_bits(bits, out_units, at<int32_t>(state, b.out_list));
  if (g.gates_hidden) list_bits(bits + out_units, h.hidden_padded / kPad, at<int32_t>(state, b.hidden_list));
}

// ---- depthwise history: a ring of rows, one per frame, zeros for omitted channels

DYNCP_INLINE float* history_row(const PackedHeader& h, const PackedBlock& b, void* state, int64_t frames, int64_t age) {
  const int64_t slot = (frames + b.history_rows - age) % b.history_rows;
  return at<float>(state, b.history) + slot * h.hidden_padded;
}

// The rows that the taps read, oldest first; the last one is the frame's own.
struct History {
  float* rows[64];
};

// `frames` came before this one.
DYNCP_INLINE History find_history(const PackedHeader& h, const PackedBlock& b, void* state, int64_t frames) {
  History history;
  const int taps = h.geometry.taps;
  for (int k = 0; k < taps; ++k) {
    history.rows[k] = history_row(h, b, state, frames, int64_t{taps - 1 - k} * b.dilation);
  }
  return history;
}

// ---- the hidden half of a block: everything before W_out

// What follows the first product, for the channels from `place` on, of which those with a lane of `kept` are kept.
DYNCP_INLINE void convolve(const PackedHeader& h, const PackedBlock& b, const History& history, int place,
                           Integers kept, Floats sum_in, float* z) {
  const int last = h.geometry.taps - 1;
  const float* w_dw = at<float>(&h, b.w_dw) + place;
  const Floats u = select(kept, activate(sum_in, b.slope_in), zero<float>());
  store(history.rows[last] + place, u);
  Floats sum = load(at<float>(&h, b.b_dw) + place);
  for (int k = 0; k < last; ++k) sum += load(w_dw + int64_t{k} * h.hidden_padded) * load(history.rows[k] + place);
  sum += load(w_dw + int64_t{last} * h.hidden_padded) * u;
  store(z + place, select(kept, activate(sum, b.slope_dw), zero<float>()));
}

// What follows the product with every channel; with `bits`, u and z of pruned ones are dropped by selection.
void hidden_dense(const PackedHeader& h, const PackedBlock& b, const History& history, const uint16_t* bits,
                  const float* sums, float* z) {
  for (int i = 0; i < h.hidden_padded; i += kWidth) {
    convolve(h, b, history, i, bits == nullptr ? Integers{} - 1 : lanes_of(bits, i), load(sums + i), z);
  }
}

// Only the kept channels, given by their indices (whole vectors of them, the surplus repeated).  Only the products pick
// rows; all else is as cheap for every channel in order as for some of them out of order.
//
// No software prefetch here: measured on an out-of-order core with float32 rows, it only lost time (its requests share
// the few line fill buffers with the loads), at every density and for random gates as well.
template <Precision P>
void hidden_gathered(const PackedHeader& h, const PackedBlock& b, void* state, const History& history,
                     const uint16_t* bits, const int32_t* list, int count, const float* values, float* products,
                     float* z) {
  const Activations<P> x(DigitOrder::woven, h, state, values, h.channels_padded);
  multiply_listed(
      list, count, at<char>(&h, b.hidden_rows), h.hidden_row_stride, products,
      [&](const char* const* rows, int filled) { return multiply_rows<P>(rows, filled, x, h.channels_padded); });
  for_spread(
      bits, h.hidden_padded, products,
      [&](int place, Integers kept, Floats product) DYNCP_INLINED {
        const Floats sum = finished<P>(product, &h, b.w_in, place);
        convolve(h, b, history, place, kept, sum, z);
      },
      [&](int place) DYNCP_INLINED {
        store(history.rows[h.geometry.taps - 1] + place, zero<float>());
        store(z + place, zero<float>());
      });
}

// ---- the output half: x += W_out z + b_out

// Only the columns of kept hidden channels.
template <Precision P>
void out_of_columns(const PackedHeader& h, const PackedBlock& b, void* state, const int32_t* list, int count,
                    const uint16_t* bits, const float* z, float* x) {
  const char* columns = at<char>(&h, b.hidden_columns);
  const int64_t stride = h.hidden_column_stride;
  const bool all = count == h.geometry.hidden;
  if (kTakesDigits<P> && !all) {
    // Digits are taken four at a time, so these stand side by side.
    float* listed = at<float>(state, h.products);
    for (int i = 0; i < count; ++i) listed[i] = z[list[i]];
    z = listed;
  }
  const Activations<P> kept(DigitOrder::plain, h, state, z, count);
  for_tiles<P, kTakesDigits<P> ? 1 : 2>(h.channels_padded, [&](auto tile) DYNCP_INLINED {
    constexpr int kVectors = decltype(tile)::kVectors;
    Floats sums[kVectors];
    const auto sum_columns = [&](auto index) DYNCP_INLINED {
      sum_rows<P>(
          tile, count, [&](int i) DYNCP_INLINED { return columns + index(i) * stride; }, kept,
          [&](int i) DYNCP_INLINED { return kTakesDigits<P> ? i : index(i); }, sums);
    };
    // Addresses that wait for a list cost 15 % of the product, measured; with all channels none is needed.
    if (all) {
      sum_columns([](int i) { return i; });
    } else {
      sum_columns([&](int i) { return list[i]; });
    }
    unrolled<kVectors>([&](auto v) DYNCP_INLINED {
      const int place = tile.place(v);
      const Floats y = load(x + place) + finished<P>(sums[v], &h, b.w_out, place);
      store(x + place, bits == nullptr ? y : select(lanes_of(bits, place), y, load(x + place)));
    });
  });
}

// Only the kept outputs; with hidden bits, weights of pruned hidden channels are dropped by selection.
template <Precision P>
void out_gathered(const PackedHeader& h, const PackedBlock& b, void* state, const uint16_t* bits, const int32_t* list,
                  int count, const float* values, const uint16_t* hidden_bits, float* products, float* x) {
  const Activations<P> z(DigitOrder::woven, h, state, values, h.hidden_padded);
  const char* weights = at<char>(&h, b.out_rows);
  multiply_listed(list, count, weights, h.out_row_stride, products, [&](const char* const* rows, int filled) {
    return hidden_bits != nullptr ? multiply_rows<P, true>(rows, filled, z, h.hidden_padded, hidden_bits)
                                  : multiply_rows<P>(rows, filled, z, h.hidden_padded);
  });
  for_spread(
      bits, h.channels_padded, products,
      [&](int place, Integers kept, Floats product) DYNCP_INLINED {
        const Floats before = load(x + place);
        store(x + place, select(kept, before + finished<P>(product, &h, b.w_out, place), before));
      },
      [](int) {});
}

bool above(float crossover, int kept, int all) {
  return static_cast<float>(kept) > crossover * static_cast<float>(all);
}

// Frames that go through the network together, each with a row of everything.
struct Chunk {
  int frames;
  int64_t before;  // frames of the stream before them
  float *x[kTileFrames], *z[kTileFrames], *sums[kTileFrames], *reduced[kTileFrames];
};

// Those frames of a chunk that take the same product.
struct Group {
  int frames = 0;
  int members[kTileFrames] = {};
  const float* values[kTileFrames] = {};
  float* sums[kTileFrames] = {};
  DYNCP_INLINE void add(int t, const float* of_values, float* of_sums) {
    members[frames] = t;
    values[frames] = of_values;
    sums[frames++] = of_sums;
  }
};

// Hidden gates: what comes before W_out, and W_out itself.
template <Precision P>
void block_with_hidden_gates(const PackedHeader& h, const PackedBlock& b, void* state, const Chunk& chunk,
                             const FrameGates* gates) {
  const Geometry& g = h.geometry;
  const float crossover = static_cast<const StateHeader*>(state)->crossover.hidden;
  const int32_t* list = at<int32_t>(state, b.hidden_list);
  float* products = at<float>(state, h.products);
  Group dense;
  for (int t = 0; t < chunk.frames; ++t) {
    if (above(crossover, gates[t].kept.hidden, g.hidden)) dense.add(t, chunk.x[t], chunk.sums[t]);
  }
  multiply_panels_of_frames<P>(h, state, b.w_in, dense.frames, dense.values, dense.sums,
                               [&](int f, int place, Floats sum) { store(dense.sums[f] + place, sum); });
  for (int t = 0; t < chunk.frames; ++t) {
    const Kept kept = gates[t].kept;
    const uint16_t* out_bits = g.gates_out ? gates[t].bits : nullptr;
    const uint16_t* hidden_bits = gates[t].bits + (g.gates_out ? h.channels_padded / kPad : 0);
    if (gates[t].changed) list_kept(h, b, state, gates[t].bits);
    const History history = find_history(h, b, state, chunk.before + t);
    float *x = chunk.x[t], *z = chunk.z[t];
    if (above(crossover, kept.hidden, g.hidden)) {
      hidden_dense(h, b, history, hidden_bits, chunk.sums[t], z);
    } else {
      hidden_gathered<P>(h, b, state, history, hidden_bits, list, kept.hidden, x, products, z);
    }
    // The history needs the kept hidden channels even where nothing reaches the output.
    if (kept.hidden == 0 || (g.gates_out && kept.out == 0)) continue;
    if (g.gates_out && int64_t{kept.out} * g.hidden < int64_t{kept.hidden} * g.channels) {
      out_gathered<P>(h, b, state, out_bits, at<int32_t>(state, b.out_list), kept.out, z, hidden_bits, products, x);
    } else {
      out_of_columns<P>(h, b, state, list, kept.hidden, out_bits, z, x);
    }
  }
}

// Gated outputs or no gates: W_out.
template <Precision P>
void project(const PackedHeader& h, const PackedBlock& b, void* state, const Chunk& chunk, const FrameGates* gates) {
  const Geometry& g = h.geometry;
  const float crossover = static_cast<const StateHeader*>(state)->crossover.out;
  Group dense;
  for (int t = 0; t < chunk.frames; ++t) {
    if (g.gates_out && gates[t].changed) list_kept(h, b, state, gates[t].bits);
    if (!g.gates_out || above(crossover, gates[t].kept.out, g.channels)) {
      dense.add(t, chunk.z[t], chunk.sums[t]);
      continue;
    }
    out_gathered<P>(h, b, state, gates[t].bits, at<int32_t>(state, b.out_list), gates[t].kept.out, chunk.z[t], nullptr,
                    at<float>(state, h.products), chunk.x[t]);
  }
  multiply_panels_of_frames<P>(
      h, state, b.w_out, dense.frames, dense.values, dense.sums, [&](int f, int place, Floats sum) {
        float* x = chunk.x[dense.members[f]] + place;
        const Floats before = load(x), y = before + sum;
        store(x, g.gates_out ? select(lanes_of(gates[dense.members[f]].bits, place), y, before) : y);
      });
}

// `unpacked` are bytes of the gates of block n of the first frame, or null.
template <Precision P>
void run_block(const PackedHeader& h, int n, void* state, float shift, const Chunk& chunk, uint8_t* unpacked) {
  const Geometry& g = h.geometry;
  const PackedBlock& b = packed_blocks(h)[n];
  if (g.gate_kind == GateKind::pooled) {
    for (int t = 0; t < chunk.frames; ++t) reduce(h, b, state, chunk.before + t, chunk.x[t], chunk.reduced[t]);
  }
  // Needs no gates, so that it hides how long they take.
  if (!g.gates_hidden) {
    multiply_panels_of_frames<P>(h, state, b.w_in, chunk.frames, chunk.x, chunk.sums,
                                 [&](int t, int place, Floats sum) { store(chunk.sums[t] + place, sum); });
    for (int t = 0; t < chunk.frames; ++t) {
      hidden_dense(h, b, find_history(h, b, state, chunk.before + t), nullptr, chunk.sums[t], chunk.z[t]);
    }
  }
  FrameGates gates[kTileFrames];
  if (g.gate_kind != GateKind::none) {
    Kept* kept = at<Kept>(state, h.kept) + n;
    FrameGates before = {at<uint16_t>(state, b.bits), false, *kept};
    for (int t = 0; t < chunk.frames; ++t) {
      gates[t].bits = t + 1 == chunk.frames ? at<uint16_t>(state, b.bits)
                                            : at<uint16_t>(state, h.chunk_bits) + t * (h.gates_padded / kPad);
      decide(h, b, state, chunk.reduced[t], shift, before, &gates[t]);
      before = gates[t];
      if (unpacked != nullptr) unpack_gates(h, b, gates[t].bits, unpacked + int64_t{t} * g.blocks * h.gates);
    }
    *kept = before.kept;
  }
  if (g.gates_hidden) {
    block_with_hidden_gates<P>(h, b, state, chunk, gates);
  } else {
    project<P>(h, b, state, chunk, gates);
  }
}

template <Precision P>
void step_with(const PackedHeader& h, void* state, const float* features, int frames, int64_t stride, float shift,
               float* masks, uint8_t* gates) {
  const Geometry& g = h.geometry;
  auto* header = static_cast<StateHeader*>(state);
  Chunk chunk{};
  chunk.frames = frames;
  chunk.before = header->frames;
  const float* inputs[kTileFrames] = {};
  for (int t = 0; t < frames; ++t) {
    inputs[t] = features + t * stride;
    chunk.x[t] = at<float>(state, h.x) + int64_t{t} * h.channels_padded;
    chunk.z[t] = at<float>(state, h.hidden_values) + int64_t{t} * h.hidden_padded;
    chunk.sums[t] = at<float>(state, h.sums) + int64_t{t} * h.sums_stride;
    chunk.reduced[t] = at<float>(state, h.reduced) + int64_t{t} * h.gate_width_padded;
  }
  multiply_panels_of_frames<P>(h, state, h.front, frames, inputs, chunk.x,
                               [&](int t, int place, Floats sum) { store(chunk.x[t] + place, relu<float>(sum)); });
  for (int n = 0; n < g.blocks; ++n) {
    run_block<P>(h, n, state, shift, chunk, gates == nullptr ? nullptr : gates + int64_t{n} * h.gates);
  }
  header->frames += frames;
  multiply_panels_of_frames<P>(h, state, h.back, frames, chunk.x, chunk.sums, [&](int t, int place, Floats logits) {
    float* mask = masks + t * stride + place;
    if (place + kWidth <= g.bins) {
      store(mask, sigmoid(logits));
    } else if (place < g.bins) {
      store_first(mask, sigmoid(logits), g.bins - place);
    }
  });
}

void step(const PackedHeader& model, void* state, const float* features, int frames, int64_t stride, float shift,
          float* masks, uint8_t* gates) {
  switch (model.precision) {
    case Precision::float32:
      return step_with<Precision::float32>(model, state, features, frames, stride, shift, masks, gates);
    case Precision::float16:
      return step_with<Precision::float16>(model, state, features, frames, stride, shift, masks, gates);
    case Precision::bfloat16:
      return step_with<Precision::bfloat16>(model, state, features, frames, stride, shift, masks, gates);
    case Precision::int8:
      return step_with<Precision::int8>(model, state, features, frames, stride, shift, masks, gates);
    case Precision::int24:
      return step_with<Precision::int24>(model, state, features, frames, stride, shift, masks, gates);
  }
}

}  // namespace

const StreamKernels stream_kernels = {step, analyse, synthesise};

}  // namespace dyncp::DYNCP_ISA
