#include "core/kernels/stream_step.h"

#include "core/kernels/stream_digits.h"
#include "core/kernels/stream_math.h"

namespace dyncp::DYNCP_ISA {
namespace {

// Rows whose products run side by side: as many accumulators hide the latency of a multiply-add.
constexpr int kRowsAtOnce = kWidth < 8 ? kWidth : 8;
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

// sums[v] = sum over i < count of activation i, x.values[index(i)], times the tile's weights of row(i).
template <Precision P, class Outputs, class Row, class Index>
DYNCP_INLINE void sum_rows(Outputs tile, int count, Row row, const Activations<P>& x, Index index, Floats* sums) {
#if defined(__AVX512VNNI__)
  if constexpr (kTakesDigits<P> && Outputs::kVectors == 4) {
    const int64_t offset = row_bytes(P, tile.place(0));
    return sum_lines(count, [&](int i) DYNCP_INLINED { return row(i) + offset; }, x.digits, sums);
  }
#endif
  constexpr int kVectors = Outputs::kVectors;
  // Two chains of sums where the registers allow it: eight alone just cover the latency of a multiply-add.
  constexpr int kChains = 2 * kVectors <= kVectorRegisters / 2 ? 2 : 1;
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

// ---- products over rows that lie anywhere

// Lane r < count of the result is row r times x; `length` is a multiple of kPad.  With `kept` bits, lanes of the rows
// where a bit is 0 do not enter: there the weights may be anything.
template <Precision P, bool kMasked = false>
DYNCP_INLINE Floats multiply_rows(const char* const* rows, int count, const Activations<P>& x, int length,
                                  const uint16_t* kept = nullptr) {
  Floats sums[kWidth];
  unrolled<kWidth / kRowsAtOnce>([&](auto group) DYNCP_INLINED {
    Floats* part = sums + group * kRowsAtOnce;
    unrolled<kRowsAtOnce>([&](auto r) DYNCP_INLINED { part[r] = zero<float>(); });
    if (group * kRowsAtOnce >= count) return;
#if defined(__AVX512VNNI__)
    // Bytes are never NaN, and the activations of pruned channels are zeros.
    if constexpr (kTakesDigits<P>) {
      return multiply_bytes<kRowsAtOnce>(rows + group * kRowsAtOnce, x.digits, length, part);
    }
#endif
    for_tiles<P, 1>(length, [&](auto tile) DYNCP_INLINED {
      unrolled<kRowsAtOnce>([&](auto r) DYNCP_INLINED {
        tile.for_units(rows[group * kRowsAtOnce + r], [&](auto, const Floats* w) DYNCP_INLINED {
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

DYNCP_INLINE void pool(const PackedHeader& h, const PackedBlock& b, void* state, const float* x, float* pooled) {
  const int64_t frames = static_cast<const StateHeader*>(state)->frames;
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
void reduce(const PackedHeader& h, const PackedBlock& b, void* state, const float* x) {
  float* pooled = at<float>(state, h.pooled);
  pool(h, b, state, x, pooled);
  const char* weights = at<char>(&h, b.gate_reduce.weights);
  const int64_t stride = row_bytes(kGatePrecision, h.channels_padded);
  const int width = h.geometry.gate_width;
  const Activations<kGatePrecision> x_pooled(DigitOrder::woven, h, state, pooled, h.channels_padded);
  for (int first = 0; first < width; first += kWidth) {
    const char* rows[kWidth];
    for (int r = 0; r < kWidth; ++r) rows[r] = weights + least(first + r, width - 1) * stride;
    const Floats sums = multiply_rows<kGatePrecision>(rows, width - first, x_pooled, h.channels_padded);
    store(at<float>(state, h.reduced) + first, relu<float>(finished<kGatePrecision>(sums, &h, b.gate_reduce, first)));
  }
}

// Decides the gates of a block; what is derived from them is rebuilt only when a bit has changed.
void decide(const PackedHeader& h, const PackedBlock& b, void* state, float shift, Kept* kept) {
  const Geometry& g = h.geometry;
  const float* decided = at<float>(&h, b.gate_expand.bias);
  if (g.gate_kind == GateKind::pooled) {
    float* scores = at<float>(state, h.scores);
    multiply_panels<kGatePrecision>(h, state, b.gate_expand, at<float>(state, h.reduced),
                                    [&](int place, Floats sum) { store(scores + place, sum); });
    decided = scores;
  }
  uint16_t* bits = at<uint16_t>(state, b.bits);
  const int units = h.gates_padded / kPad;
  int changes = 0;
  for (int unit = 0; unit < units; ++unit) {
    uint32_t now = 0;
    for (int lane = 0; lane < kPad; lane += kWidth) {
      now |= bits_of(load(decided + unit * kPad + lane) + shift > zero<float>()) << lane;
    }
    changes |= now ^ bits[unit];
    bits[unit] = static_cast<uint16_t>(now);
  }
  if (changes != 0) {
    const int out_units = g.gates_out ? h.channels_padded / kPad : 0;
    if (g.gates_out) {
      kept->out = list_bits(bits, out_units, at<int32_t>(state, b.out_list));
    }
    if (g.gates_hidden) {
      kept->hidden = list_bits(bits + out_units, units - out_units, at<int32_t>(state, b.hidden_list));
    }
  }
}

// ---- depthwise history: a ring of rows, one per frame, zeros for omitted channels

DYNCP_INLINE float* history_row(const PackedHeader& h, const PackedBlock& b, void* state, int64_t age) {
  const int64_t frames = static_cast<const StateHeader*>(state)->frames;
  const int64_t slot = (frames + b.history_rows - age) % b.history_rows;
  return at<float>(state, b.history) + slot * h.hidden_padded;
}

// The rows that the taps read, oldest first; the last one is the frame's own.
struct History {
  float* rows[64];
};

DYNCP_INLINE void find_history(const PackedHeader& h, const PackedBlock& b, void* state, History& history) {
  const int taps = h.geometry.taps;
  for (int k = 0; k < taps; ++k) {
    history.rows[k] = history_row(h, b, state, int64_t{taps - 1 - k} * b.dilation);
  }
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

// Every channel; with `bits`, u and z of pruned ones are dropped by selection.
template <Precision P>
void hidden_dense(const PackedHeader& h, const PackedBlock& b, void* state, const History& history,
                  const uint16_t* bits, const float* x, float* z) {
  multiply_panels<P>(h, state, b.w_in, x, [&](int place, Floats sum) { store(z + place, sum); });
  for (int i = 0; i < h.hidden_padded; i += kWidth) {
    convolve(h, b, history, i, bits == nullptr ? Integers{} - 1 : lanes_of(bits, i), load(z + i), z);
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

// Every output; with `bits`, pruned ones are dropped by selection.
template <Precision P>
void out_dense(const PackedHeader& h, const PackedBlock& b, void* state, const uint16_t* bits, const float* z,
               float* x) {
  multiply_panels<P>(h, state, b.w_out, z, [&](int place, Floats sum) {
    const Floats y = load(x + place) + sum;
    store(x + place, bits == nullptr ? y : select(lanes_of(bits, place), y, load(x + place)));
  });
}

// The same with only the columns of kept hidden channels.
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

template <Precision P>
void block_with_hidden_gates(const PackedHeader& h, const PackedBlock& b, void* state, const History& history,
                             Kept kept, Crossover crossover, float* x) {
  const Geometry& g = h.geometry;
  float* z = at<float>(state, h.hidden_values);
  float* products = at<float>(state, h.products);
  const int32_t* list = at<int32_t>(state, b.hidden_list);
  const uint16_t* out_bits = g.gates_out ? at<uint16_t>(state, b.bits) : nullptr;
  const uint16_t* hidden_bits = at<uint16_t>(state, b.bits) + (g.gates_out ? h.channels_padded / kPad : 0);
  if (above(crossover.hidden, kept.hidden, g.hidden)) {
    hidden_dense<P>(h, b, state, history, hidden_bits, x, z);
  } else {
    hidden_gathered<P>(h, b, state, history, hidden_bits, list, kept.hidden, x, products, z);
  }
  // The history needs the kept hidden channels even where nothing reaches the output.
  if (kept.hidden == 0 || (g.gates_out && kept.out == 0)) return;
  if (g.gates_out && int64_t{kept.out} * g.hidden < int64_t{kept.hidden} * g.channels) {
    out_gathered<P>(h, b, state, out_bits, at<int32_t>(state, b.out_list), kept.out, z, hidden_bits, products, x);
  } else {
    out_of_columns<P>(h, b, state, list, kept.hidden, out_bits, z, x);
  }
}

template <Precision P>
void run_block(const PackedHeader& h, const PackedBlock& b, void* state, float shift, Kept* kept, uint8_t* gates,
               float* x) {
  const Geometry& g = h.geometry;
  const Crossover crossover = static_cast<const StateHeader*>(state)->crossover;
  History history;
  find_history(h, b, state, history);
  float* z = at<float>(state, h.hidden_values);
  if (g.gate_kind == GateKind::pooled) reduce(h, b, state, x);
  // Needs no gates, so that it hides how long they take.
  if (!g.gates_hidden) hidden_dense<P>(h, b, state, history, nullptr, x, z);
  if (g.gate_kind != GateKind::none) {
    decide(h, b, state, shift, kept);
    if (gates != nullptr) unpack_gates(h, b, state, gates);
  }
  if (g.gates_hidden) {
    block_with_hidden_gates<P>(h, b, state, history, *kept, crossover, x);
  } else if (!g.gates_out) {
    out_dense<P>(h, b, state, nullptr, z, x);
  } else if (above(crossover.out, kept->out, g.channels)) {
    out_dense<P>(h, b, state, at<uint16_t>(state, b.bits), z, x);
  } else {
    out_gathered<P>(h, b, state, at<uint16_t>(state, b.bits), at<int32_t>(state, b.out_list), kept->out, z, nullptr,
                    at<float>(state, h.products), x);
  }
}

template <Precision P>
void step_with(const PackedHeader& h, void* state, const float* features, int frames, int64_t stride, float shift,
               float* masks, uint8_t* gates) {
  const Geometry& g = h.geometry;
  auto* header = static_cast<StateHeader*>(state);
  const int64_t before = header->frames;
  float* x = at<float>(state, h.x);
  for (int t = 0; t < frames; ++t) {
    float* row = x + int64_t{t} * h.channels_padded;
    multiply_panels<P>(h, state, h.front, features + t * stride,
                       [&](int place, Floats sum) { store(row + place, relu<float>(sum)); });
  }
  Kept* kept = at<Kept>(state, h.kept);
  for (int n = 0; n < g.blocks; ++n) {
    const PackedBlock& b = packed_blocks(h)[n];
    for (int t = 0; t < frames; ++t) {
      header->frames = before + t;
      uint8_t* own_gates = gates == nullptr ? nullptr : gates + (int64_t{t} * g.blocks + n) * h.gates;
      run_block<P>(h, b, state, shift, kept + n, own_gates, x + int64_t{t} * h.channels_padded);
    }
  }
  header->frames = before + frames;
  for (int t = 0; t < frames; ++t) {
    float* mask = masks + t * stride;
    multiply_panels<P>(h, state, h.back, x + int64_t{t} * h.channels_padded, [&](int place, Floats logits) {
      if (place + kWidth <= g.bins) {
        store(mask + place, sigmoid(logits));
      } else if (place < g.bins) {
        store_first(mask + place, sigmoid(logits), g.bins - place);
      }
    });
  }
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
