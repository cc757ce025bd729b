#include "core/kernels/stream_step.h"

#include "core/kernels/stream_math.h"

namespace dyncp::DYNCP_ISA {
namespace {

// Rows whose products run side by side: as many accumulators hide the latency of a multiply-add.
constexpr int kRowsAtOnce = kWidth < 8 ? kWidth : 8;

DYNCP_INLINE int least(int a, int b) { return a < b ? a : b; }

DYNCP_INLINE Floats activate(Floats v, float slope) { return prelu<float>(v, slope); }

// ---- products in which every output is wanted

// kUnits units of a row: each is the same part of kCount vectors of kPad, see load_weights.
template <Precision P, int kCount, int kUnits>
struct Tile {
  static constexpr int kVectors = kCount * kUnits;
  int first, unit;

  DYNCP_INLINE int vector(int u) const { return first + (unit + u) / kParts * kCount; }
  DYNCP_INLINE int part(int u) const { return (unit + u) % kParts; }
  // Where our vector v of the tile stands among the values that the row is for.
  DYNCP_INLINE int place(int v) const { return (vector(v / kCount) + v % kCount) * kPad + part(v / kCount) * kWidth; }
  DYNCP_INLINE void load_row(const char* row, Floats* w) const {
    unrolled<kUnits>([&](auto u) { load_weights<P, kCount>(row, vector(u), part(u), w + u * kCount); });
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

// Weights of 24 bits are read and unpacked at about the same pace, and the processor does not look ahead far enough to
// do both at once.  The others are bound by one of the two and only lose by prefetching.
constexpr int kRowsAhead = 16;

template <Precision P>
DYNCP_INLINE void prefetch_row(const char* row) {
  constexpr int kBytes = static_cast<int>(row_bytes(P, kPanel));
  unrolled<kBytes / kLine>([&](auto line) { __builtin_prefetch(row + kRowsAhead * kBytes + line * kLine); });
}

// One tile of outputs of a panel, over all inputs.
template <Precision P, class Outputs>
DYNCP_INLINE void panel_tile(Outputs tile, const char* weights, int64_t row_step, const float* x, int inputs,
                             const float* bias, const float* scale, float* out) {
  constexpr int kVectors = Outputs::kVectors;
  // Two chains of sums where the registers allow it: eight alone just cover the latency of a multiply-add.
  constexpr int kChains = 2 * kVectors <= kVectorRegisters / 2 ? 2 : 1;
  Floats sums[kVectors], others[kVectors], w[kVectors];
  unrolled<kVectors>([&](auto v) {
    sums[v] = has_scales(P) ? zero<float>() : load(bias + tile.place(v));
    others[v] = zero<float>();
  });
  const auto add = [&](Floats* to, int i) {
    const Floats value = broadcast(x[i]);
    const char* row = weights + i * row_step;
    if (P == Precision::int24 && tile.first + tile.unit == 0) prefetch_row<P>(row);
    tile.load_row(row, w);
    unrolled<kVectors>([&](auto v) { to[v] += value * w[v]; });
  };
  int i = 0;
  for (; kChains == 2 && i + 1 < inputs; i += 2) {
    add(sums, i);
    add(others, i + 1);
  }
  for (; i < inputs; ++i) add(sums, i);
  unrolled<kVectors>([&](auto v) {
    const int place = tile.place(v);
    const Floats sum = sums[v] + others[v];
    store(out + place, has_scales(P) ? sum * load(scale + place) + load(bias + place) : sum);
  });
}

// out = bias + W x, all padded outputs.
template <Precision P>
void multiply_panels(const void* model, const PanelMatrix& matrix, const float* x, float* out) {
  const char* weights = at<char>(model, matrix.weights);
  const float* bias = at<float>(model, matrix.bias);
  const float* scale = at<float>(model, matrix.scale);
  const int outputs = (matrix.outputs + kPad - 1) / kPad * kPad, inputs = matrix.inputs;
  for (int start = 0; start < outputs; start += kPanel) {
    const int width = least(kPanel, outputs - start);
    const int64_t step = row_bytes(P, width);
    for_tiles<P>(width, [&](auto tile) {
      panel_tile<P>(tile, weights, step, x, inputs, bias + start, scale + start, out + start);
    });
    weights += inputs * step;
  }
}

// ---- products over rows that lie anywhere

// Lane r of the result is row r times x; `length` is a multiple of kPad.  With `kept` bits, lanes of the rows where a
// bit is 0 do not enter: there the weights may be anything.
template <Precision P, bool kMasked>
DYNCP_INLINE Floats multiply_rows(const char* const* rows, const float* x, const uint16_t* kept, int length) {
  Floats sums[kWidth];
  for (int first = 0; first < kWidth; first += kRowsAtOnce) {
    Floats part[kRowsAtOnce];
    unrolled<kRowsAtOnce>([&](auto r) { part[r] = zero<float>(); });
    for_tiles<P, 1>(length, [&](auto tile) {
      constexpr int kVectors = decltype(tile)::kVectors;
      unrolled<kRowsAtOnce>([&](auto r) {
        Floats w[kVectors];
        tile.load_row(rows[first + r], w);
        unrolled<kVectors>([&](auto v) {
          const int place = tile.place(v);
          if (kMasked) w[v] = select(lanes_of(kept, place), w[v], zero<float>());
          part[r] += load(x + place) * w[v];
        });
      });
    });
    unrolled<kRowsAtOnce>([&](auto r) { sums[first + r] = part[r]; });
  }
  return sum_of_rows(sums);
}

// out += sum of values[i] * columns[i], `length` a multiple of kPad.
template <Precision P>
DYNCP_INLINE void add_columns(const char* const* columns, const float* values, int count, int length, float* out) {
  for_tiles<P>(length, [&](auto tile) {
    constexpr int kVectors = decltype(tile)::kVectors;
    Floats sums[kVectors], w[kVectors];
    unrolled<kVectors>([&](auto v) { sums[v] = load(out + tile.place(v)); });
    for (int i = 0; i < count; ++i) {
      const Floats value = broadcast(values[i]);
      tile.load_row(columns[i], w);
      unrolled<kVectors>([&](auto v) { sums[v] += value * w[v]; });
    }
    unrolled<kVectors>([&](auto v) { store(out + tile.place(v), sums[v]); });
  });
}

// ---- gates

DYNCP_INLINE void pool(const PackedHeader& h, const PackedBlock& b, void* state, const float* x, float* pooled) {
  const int64_t frames = static_cast<const StateHeader*>(state)->frames;
  float* memory = at<float>(state, b.pool);
  const int length = h.channels_padded, window = h.geometry.window;
  switch (h.geometry.pooling) {
    case Pooling::average: {
      const float count = static_cast<float>(frames + 1);
      for (int i = 0; i < length; i += kWidth) {
        const Floats sum = load(memory + i) + load(x + i);
        store(memory + i, sum);
        store(pooled + i, sum / count);
      }
      return;
    }
    case Pooling::exponential: {
      const float rate = static_cast<float>(2.0 / (window + 1));
      for (int i = 0; i < length; i += kWidth) {
        const Floats now = load(x + i), before = frames == 0 ? now : load(memory + i);
        const Floats next = before + rate * (now - before);
        store(memory + i, next);
        store(pooled + i, next);
      }
      return;
    }
    case Pooling::window: {
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

// Decides the gates of a block; what is derived from them is rebuilt only when a bit has changed.
void decide(const PackedHeader& h, const PackedBlock& b, void* state, const float* x, float shift, Kept* kept) {
  const Geometry& g = h.geometry;
  float* scores = at<float>(state, h.gate_values);
  const float* decided = scores;
  if (g.gate_kind == GateKind::pooled) {
    float* pooled = at<float>(state, h.pooled);
    pool(h, b, state, x, pooled);
    const char* reduce = at<char>(&h, b.gate_reduce);
    const int width = (g.gate_width + kPad - 1) / kPad * kPad;
    const float* bias = reinterpret_cast<const float*>(reduce) + int64_t{width} * h.channels_padded;
    float* reduced = scores + (h.gates_padded > kPad ? h.gates_padded : kPad);
    for (int first = 0; first < g.gate_width; first += kWidth) {
      const char* rows[kWidth];
      for (int r = 0; r < kWidth; ++r) {
        rows[r] = reduce + int64_t{least(first + r, g.gate_width - 1)} * h.channels_padded * 4;
      }
      store(reduced + first,
            relu<float>(multiply_rows<Precision::float32, false>(rows, pooled, nullptr, h.channels_padded) +
                        load(bias + first)));
    }
    multiply_panels<Precision::float32>(&h, b.gate_expand, reduced, scores);
  } else {
    decided = at<float>(&h, b.gate_expand.bias);
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

template <Precision P>
void hidden_dense(const PackedHeader& h, const PackedBlock& b, const History& history, const float* x, float* z) {
  const int taps = h.geometry.taps;
  float* now = history.rows[taps - 1];
  multiply_panels<P>(&h, b.w_in, x, now);
  const float* w_dw = at<float>(&h, b.w_dw);
  const float* b_dw = at<float>(&h, b.b_dw);
  for (int i = 0; i < h.hidden_padded; i += kWidth) {
    store(now + i, activate(load(now + i), b.slope_in));
    Floats sum = load(b_dw + i);
    for (int k = 0; k < taps; ++k) sum += load(w_dw + int64_t{k} * h.hidden_padded + i) * load(history.rows[k] + i);
    store(z + i, activate(sum, b.slope_dw));
  }
}

// Up to kWidth gated hidden channels, given by their indices (a whole vector of them, the surplus repeated).
struct Channels {
  Floats u, z;
};

// Values of an array over the channels: neighbours from `first`, or those at the indices.
DYNCP_INLINE Floats pick(const float* values, int first) { return load(values + first); }
DYNCP_INLINE Floats pick(const float* values, const int32_t* indices) { return gather(values, indices); }

template <Precision P, class Which>
DYNCP_INLINE Channels compute_channels(const PackedHeader& h, const PackedBlock& b, const History& history, Which which,
                                       const char* const* records, const float* x) {
  const int taps = h.geometry.taps;
  Floats u = multiply_rows<P, false>(records, x, nullptr, h.channels_padded);
  const Floats b_in = pick(at<float>(&h, b.b_in), which);
  u = has_scales(P) ? u * pick(at<float>(&h, b.scale_in), which) + b_in : u + b_in;
  u = activate(u, b.slope_in);
  Floats sum = pick(at<float>(&h, b.b_dw), which);
  const float* w_dw = at<float>(&h, b.w_dw);
  for (int k = 0; k + 1 < taps; ++k) {
    sum += pick(w_dw + int64_t{k} * h.hidden_padded, which) * pick(history.rows[k], which);
  }
  sum += pick(w_dw + int64_t{taps - 1} * h.hidden_padded, which) * u;
  return {u, activate(sum, b.slope_dw)};
}

// No software prefetch here: measured on an out-of-order core with 1 KiB records, it only lost time (its requests share
// the few line fill buffers with the loads), at every density and for random gates as well.
//
// Only the kept channels; their z in the order of the list, and with `columns` their share of W_out z added to
// `branch`.
template <Precision P>
void hidden_gathered(const PackedHeader& h, const PackedBlock& b, const History& history, const int32_t* list,
                     int count, const float* x, float* z, bool with_columns, float* branch) {
  float* now = history.rows[h.geometry.taps - 1];
  for (int i = 0; i < h.hidden_padded; i += kWidth) store(now + i, zero<float>());
  const char* base = at<char>(&h, b.hidden_records);
  for (int first = 0; first < count; first += kWidth) {
    const char *records[kWidth], *columns[kWidth];
    for (int r = 0; r < kWidth; ++r) {
      records[r] = base + list[first + r] * h.hidden_stride;
      columns[r] = records[r] + h.hidden_column;
    }
    const Channels channels = compute_channels<P>(h, b, history, list + first, records, x);
    float u[kWidth];
    store(u, channels.u);
    const int filled = least(kWidth, count - first);
    for (int r = 0; r < filled; ++r) now[list[first + r]] = u[r];
    store(z + first, channels.z);
    if (with_columns) add_columns<P>(columns, z + first, filled, h.channels_padded, branch);
  }
}

// As hidden_gathered, but every row is read and pruned results are dropped by selection; z of all channels, in place.
template <Precision P>
void hidden_bitsed(const PackedHeader& h, const PackedBlock& b, const History& history, const uint16_t* bits,
                   const float* x, float* z, bool with_columns, float* branch) {
  float* now = history.rows[h.geometry.taps - 1];
  const char* base = at<char>(&h, b.hidden_records);
  const int hidden = h.geometry.hidden;
  for (int first = 0; first < h.hidden_padded; first += kWidth) {
    const char *records[kWidth], *columns[kWidth];
    for (int r = 0; r < kWidth; ++r) records[r] = base + least(first + r, hidden - 1) * h.hidden_stride;
    const Channels channels = compute_channels<P>(h, b, history, first, records, x);
    const Integers kept = lanes_of(bits, first);
    const Floats kept_z = select(kept, channels.z, zero<float>());
    store(now + first, select(kept, channels.u, zero<float>()));
    store(z + first, kept_z);
    if (!with_columns) continue;
    float values[kWidth];
    int count = 0;
    for (uint32_t rest = bits_of(kept); rest != 0; rest &= rest - 1) {
      const int r = __builtin_ctz(rest);
      columns[count] = records[r] + h.hidden_column;
      values[count++] = z[first + r];
    }
    add_columns<P>(columns, values, count, h.channels_padded, branch);
  }
}

// ---- the output half: x += W_out z + b_out

template <Precision P>
void out_dense(const PackedHeader& h, const PackedBlock& b, const float* z, float* branch, float* x) {
  multiply_panels<P>(&h, b.w_out, z, branch);
  for (int i = 0; i < h.channels_padded; i += kWidth) store(x + i, load(x + i) + load(branch + i));
}

template <Precision P, class Which>
DYNCP_INLINE Floats compute_outputs(const PackedHeader& h, const PackedBlock& b, Which which,
                                    const char* const* records, const float* z, const uint16_t* hidden_bits) {
  const Floats product = hidden_bits != nullptr ? multiply_rows<P, true>(records, z, hidden_bits, h.hidden_padded)
                                                : multiply_rows<P, false>(records, z, nullptr, h.hidden_padded);
  const Floats b_out = pick(at<float>(&h, b.b_out), which);
  return has_scales(P) ? product * pick(at<float>(&h, b.scale_out), which) + b_out : product + b_out;
}

template <Precision P>
void out_gathered(const PackedHeader& h, const PackedBlock& b, const int32_t* list, int count, const float* z,
                  const uint16_t* hidden_bits, float* x) {
  const char* base = at<char>(&h, b.out_records);
  for (int first = 0; first < count; first += kWidth) {
    const char* records[kWidth];
    for (int r = 0; r < kWidth; ++r) records[r] = base + list[first + r] * h.out_stride;
    float y[kWidth];
    store(y, compute_outputs<P>(h, b, list + first, records, z, hidden_bits));
    for (int r = 0; r < least(kWidth, count - first); ++r) x[list[first + r]] += y[r];
  }
}

template <Precision P>
void out_bitsed(const PackedHeader& h, const PackedBlock& b, const uint16_t* bits, const float* z,
                const uint16_t* hidden_bits, float* x) {
  const char* base = at<char>(&h, b.out_records);
  for (int first = 0; first < h.channels_padded; first += kWidth) {
    const char* records[kWidth];
    for (int r = 0; r < kWidth; ++r) records[r] = base + least(first + r, h.geometry.channels - 1) * h.out_stride;
    const Floats y = compute_outputs<P>(h, b, first, records, z, hidden_bits);
    const Integers kept = lanes_of(bits, first);
    store(x + first, select(kept, load(x + first) + y, load(x + first)));
  }
}

// The sum of columns in `branch` becomes W_out z + b_out and enters x where the output gates, if any, keep it.
template <Precision P>
void finish_columns(const PackedHeader& h, const PackedBlock& b, const uint16_t* out_bits, const float* branch,
                    float* x) {
  const float* b_out = at<float>(&h, b.b_out);
  const float* scale = at<float>(&h, b.scale_columns);
  for (int i = 0; i < h.channels_padded; i += kWidth) {
    const Floats sum = has_scales(P) ? load(branch + i) * load(scale + i) : load(branch + i);
    const Floats y = load(x + i) + (sum + load(b_out + i));
    store(x + i, out_bits != nullptr ? select(lanes_of(out_bits, i), y, load(x + i)) : y);
  }
}

template <Precision P>
void block_with_hidden_gates(const PackedHeader& h, const PackedBlock& b, void* state, const History& history,
                             Kept kept, Crossover crossover, float* x) {
  const Geometry& g = h.geometry;
  float* z = at<float>(state, h.hidden_values);
  float* branch = at<float>(state, h.branch);
  const int32_t* list = at<int32_t>(state, b.hidden_list);
  const uint16_t* hidden_bits = at<uint16_t>(state, b.bits) + (g.gates_out ? h.channels_padded / kPad : 0);
  const uint16_t* out_bits = g.gates_out ? at<uint16_t>(state, b.bits) : nullptr;
  if (kept.hidden == 0 || (g.gates_out && kept.out == 0)) {
    // Nothing reaches the output; but with kept hidden channels the history still needs their values.
    hidden_gathered<P>(h, b, history, list, kept.hidden, x, z, false, branch);
    return;
  }
  const bool reads_all = static_cast<float>(kept.hidden) > crossover.hidden * static_cast<float>(g.hidden);
  const bool by_rows = g.gates_out && int64_t{kept.out} * g.hidden < int64_t{kept.hidden} * g.channels;
  for (int i = 0; i < h.channels_padded; i += kWidth) store(branch + i, zero<float>());
  if (!reads_all) {
    hidden_gathered<P>(h, b, history, list, kept.hidden, x, z, !by_rows, branch);
    if (by_rows) {
      float* spread = branch + h.channels_padded;
      for (int i = 0; i < h.hidden_padded; i += kWidth) store(spread + i, zero<float>());
      for (int i = 0; i < kept.hidden; ++i) spread[list[i]] = z[i];
      z = spread;
    }
  } else {
    hidden_bitsed<P>(h, b, history, hidden_bits, x, z, !by_rows, branch);
  }
  if (!by_rows) {
    finish_columns<P>(h, b, out_bits, branch, x);
  } else if (static_cast<float>(kept.out) > crossover.out * static_cast<float>(g.channels)) {
    out_bitsed<P>(h, b, out_bits, z, hidden_bits, x);
  } else {
    out_gathered<P>(h, b, at<int32_t>(state, b.out_list), kept.out, z, hidden_bits, x);
  }
}

template <Precision P>
void run_block(const PackedHeader& h, const PackedBlock& b, void* state, Kept kept, float* x) {
  const Geometry& g = h.geometry;
  const Crossover crossover = static_cast<const StateHeader*>(state)->crossover;
  History history;
  find_history(h, b, state, history);
  if (g.gates_hidden) return block_with_hidden_gates<P>(h, b, state, history, kept, crossover, x);
  float* z = at<float>(state, h.hidden_values);
  hidden_dense<P>(h, b, history, x, z);
  if (!g.gates_out) {
    out_dense<P>(h, b, z, at<float>(state, h.branch), x);
  } else if (static_cast<float>(kept.out) > crossover.out * static_cast<float>(g.channels)) {
    out_bitsed<P>(h, b, at<uint16_t>(state, b.bits), z, nullptr, x);
  } else {
    out_gathered<P>(h, b, at<int32_t>(state, b.out_list), kept.out, z, nullptr, x);
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
    multiply_panels<P>(&h, h.front, features + t * stride, row);
    for (int i = 0; i < h.channels_padded; i += kWidth) store(row + i, relu<float>(load(row + i)));
  }
  Kept* kept = at<Kept>(state, h.kept);
  for (int n = 0; n < g.blocks; ++n) {
    const PackedBlock& b = packed_blocks(h)[n];
    for (int t = 0; t < frames; ++t) {
      header->frames = before + t;
      float* row = x + int64_t{t} * h.channels_padded;
      if (g.gate_kind != GateKind::none) {
        decide(h, b, state, row, shift, kept + n);
        if (gates != nullptr) unpack_gates(h, b, state, gates + (int64_t{t} * g.blocks + n) * h.gates);
      }
      run_block<P>(h, b, state, kept[n], row);
    }
  }
  header->frames = before + frames;
  float* logits = at<float>(state, h.logits);
  for (int t = 0; t < frames; ++t) {
    multiply_panels<P>(&h, h.back, x + int64_t{t} * h.channels_padded, logits);
    float* mask = masks + t * stride;
    int i = 0;
    for (; i + kWidth <= g.bins; i += kWidth) store(mask + i, sigmoid(load(logits + i)));
    if (i < g.bins) store_first(mask + i, sigmoid(load(logits + i)), g.bins - i);
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
