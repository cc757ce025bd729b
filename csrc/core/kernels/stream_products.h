// Products of packed weights with the activations of one frame, or of some frames that share what is read.
#pragma once

#include "core/kernels/stream_digits.h"
#include "core/kernels/stream_vector.h"

namespace dyncp::DYNCP_ISA {

// Rows whose products run side by side: as many accumulators hide the latency of a multiply-add.
constexpr int kRowsSideBySide = kWidth < 8 ? kWidth : 8;
// How far prefetching runs ahead; lists of rows are padded that far.
constexpr int kRowsAhead = kPad;

DYNCP_INLINE constexpr int least(int a, int b) { return a < b ? a : b; }

// ---- activations

// Activations, prepared once for all rows of a product.
template <Precision P, bool = kTakesDigits<P>>
struct Activations {
  DYNCP_INLINE Activations(DigitOrder, const PackedHeader&, void*, const float* x, int) : values(x) {}
  const float* values;
};
#if defined(DYNCP_MULTIPLIES_BYTES)
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
  // Our vector v of the tile is this part of that vector of kPad values that the row is for.
  DYNCP_INLINE int vector_of(int v) const { return vector(v / kCount) + v % kCount; }
  DYNCP_INLINE int part_of(int v) const { return part(v / kCount); }
  DYNCP_INLINE int place(int v) const { return vector_of(v) * kPad + part_of(v) * kWidth; }
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

// Units of a tile whose rows are summed for one frame.
template <Precision P>
constexpr int kUnitsOfTile = kTakesDigits<P> ? 1 : 2;

// Sums of every second row of a panel stand apart unless there are eight vectors of them: so many cover the latency of
// a multiply-add, as each one waits for a load.  Sums of columns do not: what stands in a list must not decide how they
// are rounded, or frames that share a list would not get what each gets alone.
template <int kVectors>
constexpr int kChainsOfPanel = kVectors < 8 ? 2 : 1;
constexpr int kChainsOfColumns = 1;

// sums[v] = sum over i < count of activation i, x.values[index(i)], times the tile's weights of row(i).
template <Precision P, int kChains, class Outputs, class Row, class Index>
DYNCP_INLINE void sum_rows(Outputs tile, int count, Row row, const Activations<P>& x, Index index, Floats* sums) {
  if constexpr (kTakesDigits<P> && Outputs::kVectors == 4) {
    const int64_t offset = row_bytes(P, tile.vector(0) * kPad) + tile.part(0) * kVectorBytes;
    const auto line = [&](int i) DYNCP_INLINED { return row(i) + offset; };
    return x.digits.sum_lines(count, line, sums);
  }
  constexpr int kVectors = Outputs::kVectors;
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

// sums[f][v] = sum over the inputs of values[f][i] times the tile's weights, in a panel with words for four inputs
// whose rows are `step` bytes apart.  In one chain for every sum: unpacking takes longer than it waits.
template <Precision P, int kFrames, class Outputs>
DYNCP_INLINE void sum_fours(Outputs tile, const char* panel, int64_t step, int inputs, const float* const* values,
                            Floats (*sums)[Outputs::kVectors]) {
  constexpr int kVectors = Outputs::kVectors;
  const char* words = panel;
  Floats parts[kFrames][kVectors];
  unrolled<kFrames * kVectors>([&](auto i) DYNCP_INLINED { parts[i / kVectors][i % kVectors] = zero<float>(); });
  const auto add = [&](int first, auto exists) DYNCP_INLINED {
    unrolled<kVectors>([&](auto v) DYNCP_INLINED {
      const Words four = load_words(words + tile.vector_of(v) * kLine + tile.part_of(v) * kVectorBytes);
      unrolled<4>([&](auto j) DYNCP_INLINED {
        if (!exists(j)) return;
        const Floats w = floats_of(byte_of(four, j));
        unrolled<kFrames>([&](auto f) DYNCP_INLINED { parts[f][v] += broadcast(values[f][first + j]) * w; });
      });
    });
    words += step;
  };
  int i = 0;
  for (; i + 4 <= inputs; i += 4) add(i, [](int) { return true; });
  if (i < inputs) add(i, [&](int j) { return i + j < inputs; });
  unrolled<kFrames * kVectors>(
      [&](auto n) DYNCP_INLINED { sums[n / kVectors][n % kVectors] = parts[n / kVectors][n % kVectors]; });
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
    for_tiles<P, kUnitsOfTile<P>>(width, [&](auto tile) DYNCP_INLINED {
      constexpr int kVectors = decltype(tile)::kVectors;
      Floats sums[1][kVectors];
      if constexpr (kTakesDigits<P>) {
        x.digits.template sum_fours<kVectors>(
            inputs, panel + tile.vector_of(0) * kLine + tile.part_of(0) * kVectorBytes, 4 * width, sums[0]);
      } else if constexpr (has_fours(P)) {
        sum_fours<P, 1>(tile, panel, 4 * width, inputs, &values, sums);
      } else {
        const int64_t step = row_bytes(P, width);
        sum_rows<P, kChainsOfPanel<kVectors>>(
            tile, inputs, [&](int i) DYNCP_INLINED { return panel + i * step; }, x, [](int i) { return i; }, sums[0]);
      }
      unrolled<kVectors>([&](auto v) DYNCP_INLINED {
        const int place = start + tile.place(v);
        use(place, finished<P>(sums[0][v], &h, matrix, place));
      });
    });
    panel += panel_bytes(P, inputs, width);
  }
}

// Calls use(place, vector of outputs) for W x + bias with only the listed columns of W, which are rows in memory.
template <Precision P, class Use>
DYNCP_INLINE void multiply_columns(const PackedHeader& h, void* state, const PanelMatrix& matrix, const char* columns,
                                   int64_t stride, const int32_t* list, int count, const float* values, Use use) {
  const bool all = count == matrix.inputs;
  if (kTakesDigits<P> && !all) {
    // Digits are taken four at a time, so these stand side by side.
    float* listed = at<float>(state, h.products);
    for (int i = 0; i < count; ++i) listed[i] = values[list[i]];
    values = listed;
  }
  const Activations<P> x(DigitOrder::plain, h, state, values, count);
  for_tiles<P, kUnitsOfTile<P>>((matrix.outputs + kPad - 1) / kPad * kPad, [&](auto tile) DYNCP_INLINED {
    constexpr int kVectors = decltype(tile)::kVectors;
    Floats sums[kVectors];
    const auto sum_columns = [&](auto index) DYNCP_INLINED {
      sum_rows<P, kChainsOfColumns>(
          tile, count, [&](int i) DYNCP_INLINED { return columns + index(i) * stride; }, x,
          [&](int i) DYNCP_INLINED { return kTakesDigits<P> ? i : index(i); }, sums);
    };
    // Addresses that wait for a list cost 15 % of the product, measured; with all channels none is needed.
    if (all) {
      sum_columns([](int i) { return i; });
    } else {
      sum_columns([&](int i) { return list[i]; });
    }
    unrolled<kVectors>([&](auto v)
                           DYNCP_INLINED { use(tile.place(v), finished<P>(sums[v], &h, matrix, tile.place(v))); });
  });
}

// ---- the same for some frames, to the bit: each weight in a register serves several of them

// Frames that share weights in registers; unpacking takes some of these.
template <Precision P>
constexpr int kFramesTogether = kVectorRegisters == 32    ? 4
                                : P == Precision::float32 ? 3
                                                          : 2;
// So many go together, or two.
template <Precision P>
constexpr int frames_together(int frames) {
  return frames >= kFramesTogether<P> ? kFramesTogether<P> : 2;
}
// Rows that stay in the nearest cache while one group of frames after the other reads them; for so many frames at once,
// the next cache does.
template <Precision P>
constexpr int kRowsInCache = kFramesTogether<P> == 4 ? 1 << 16 : 32;

// Sums of all frames for the outputs of a tile.
template <int kChains, int kVectors>
struct TileSums {
  Floats chains[kChains][kTileFrames][kVectors];
};

// Adds rows [begin, end), begin even, for kFrames frames and the outputs of one unit of the tile.
template <Precision P, int kFrames, int kChains, class Outputs, class Row, class Index>
DYNCP_INLINE void add_rows(Outputs tile, int unit, int begin, int end, Row row, Index index, const float* const* values,
                           int frame, TileSums<kChains, Outputs::kVectors>& sums) {
  constexpr int kVectors = Outputs::kVectorsOfUnit, kSums = kFrames * kVectors;
  // Where registers do not hold both chains, one comes after the other: the frames cover the latency.
  constexpr int kAtOnce = kSums * kChains <= kVectorRegisters / 2 ? kChains : 1;
  const float* x[kFrames];
  unrolled<kFrames>([&](auto f) DYNCP_INLINED { x[f] = values[frame + f]; });
  const auto place = [&](int chain, int v) DYNCP_INLINED -> Floats& {
    return sums.chains[chain][frame + v / kVectors][unit * kVectors + v % kVectors];
  };
  const auto add = [&](Floats* to, int i) DYNCP_INLINED {
    Floats w[kVectors];
    load_weights<P, kVectors>(row(i), tile.vector(unit), tile.part(unit), w);
    unrolled<kFrames>([&](auto f) DYNCP_INLINED {
      const Floats factor = broadcast(x[f][index(i)]);
      unrolled<kVectors>([&](auto v) DYNCP_INLINED { to[f * kVectors + v] += factor * w[v]; });
    });
  };
  for (int pass = 0; pass < kChains; pass += kAtOnce) {
    Floats parts[kAtOnce * kSums];
    if (begin == 0) {
      unrolled<kAtOnce * kSums>([&](auto v) DYNCP_INLINED { parts[v] = zero<float>(); });
    } else {
      unrolled<kAtOnce * kSums>([&](auto v) DYNCP_INLINED { parts[v] = place(pass + v / kSums, v % kSums); });
    }
    int i = begin + pass;
    for (; i + kAtOnce <= end; i += kChains) {
      unrolled<kAtOnce>([&](auto chain) DYNCP_INLINED { add(parts + chain * kSums, i + chain); });
    }
    if (kAtOnce > 1 && i < end) add(parts, i);
    unrolled<kAtOnce * kSums>([&](auto v) DYNCP_INLINED { place(pass + v / kSums, v % kSums) = parts[v]; });
  }
}

// results[f], from `start` on, become the sums over the rows, at least one, of row(i) times values[f][index(i)],
// finished. The number of frames is a sum of what frames_together gives.
template <Precision P, int kChains, class Outputs, class Row, class Index>
DYNCP_INLINE void multiply_tile_together(const PackedHeader& h, const PanelMatrix& matrix, Outputs tile, int start,
                                         int count, Row row, Index index, int frames, const float* const* values,
                                         float* const* results) {
  constexpr int kVectors = Outputs::kVectors, kMost = kFramesTogether<P>, kRows = kRowsInCache<P>;
  TileSums<kChains, kVectors> sums;
  for (int begin = 0; begin < count; begin += kRows) {
    const int end = least(begin + kRows, count);
    for (int unit = 0; unit < kVectors / Outputs::kVectorsOfUnit; ++unit) {
      int f = 0;
      for (; f + kMost <= frames; f += kMost) {
        add_rows<P, kMost, kChains>(tile, unit, begin, end, row, index, values, f, sums);
      }
      if (kMost > 2 && f < frames) add_rows<P, 2, kChains>(tile, unit, begin, end, row, index, values, f, sums);
    }
  }
  for (int f = 0; f < frames; ++f) {
    for (int v = 0; v < kVectors; ++v) {
      Floats sum = sums.chains[0][f][v];
      if constexpr (kChains == 2) sum += sums.chains[1][f][v];
      const int place = start + tile.place(v);
      store(results[f] + place, finished<P>(sum, &h, matrix, place));
    }
  }
}

// The same for a tile of a panel with words for four inputs; all of it stays in the nearest cache.
template <Precision P, class Outputs>
DYNCP_INLINE void multiply_fours_together(const PackedHeader& h, const PanelMatrix& matrix, Outputs tile,
                                          const char* panel, int width, int start, int frames,
                                          const float* const* values, float* const* results) {
  constexpr int kVectors = Outputs::kVectors, kMost = kFramesTogether<P>;
  Floats sums[kTileFrames][kVectors];
  int f = 0;
  for (; f + kMost <= frames; f += kMost) {
    sum_fours<P, kMost>(tile, panel, 4 * width, matrix.inputs, values + f, sums + f);
  }
  if (kMost > 2 && f < frames) sum_fours<P, 2>(tile, panel, 4 * width, matrix.inputs, values + f, sums + f);
  for (f = 0; f < frames; ++f) {
    for (int v = 0; v < kVectors; ++v) {
      const int place = start + tile.place(v);
      store(results[f] + place, finished<P>(sums[f][v], &h, matrix, place));
    }
  }
}

template <Precision P>
void multiply_panels_together(const PackedHeader& h, const PanelMatrix& matrix, int frames, const float* const* values,
                              float* const* results) {
  const char* panel = at<char>(&h, matrix.weights);
  const int outputs = (matrix.outputs + kPad - 1) / kPad * kPad, inputs = matrix.inputs;
  for (int start = 0; start < outputs; start += kPanel) {
    const int width = least(kPanel, outputs - start);
    if constexpr (has_fours(P)) {
      for_tiles<P, 1>(width, [&](auto tile) DYNCP_INLINED {
        multiply_fours_together<P>(h, matrix, tile, panel, width, start, frames, values, results);
      });
    } else {
      const int64_t step = row_bytes(P, width);
      for_tiles<P>(width, [&](auto tile) DYNCP_INLINED {
        multiply_tile_together<P, kChainsOfPanel<decltype(tile)::kVectors>>(
            h, matrix, tile, start, inputs, [&](int i) DYNCP_INLINED { return panel + i * step; },
            [](int i) { return i; }, frames, values, results);
      });
    }
    panel += panel_bytes(P, inputs, width);
  }
}

// Calls use(f, place, vector of outputs) for all of W values[f] + bias of every frame; `results` are rows in between.
template <Precision P, class Use>
DYNCP_INLINE void multiply_panels_of_frames(const PackedHeader& h, void* state, const PanelMatrix& matrix, int frames,
                                            const float* const* values, float* const* results, Use use) {
  int together = 0;
  while (!kTakesDigits<P> && together + 2 <= frames) together += frames_together<P>(frames - together);
  if (together > 0) multiply_panels_together<P>(h, matrix, together, values, results);
  for (int f = 0; f < together; ++f) {
    for (int place = 0; place < matrix.outputs; place += kWidth) use(f, place, load(results[f] + place));
  }
  for (int f = together; f < frames; ++f) {
    multiply_panels<P>(h, state, matrix, values[f], [&](int place, Floats sum) { use(f, place, sum); });
  }
}

// results[f] = W values[f] + bias with only the listed columns of W; where a frame does not keep a listed channel, its
// value must be 0 and the weights finite.
template <Precision P>
void multiply_columns_together(const PackedHeader& h, const PanelMatrix& matrix, const char* columns, int64_t stride,
                               const int32_t* list, int count, int frames, const float* const* values,
                               float* const* results) {
  for_tiles<P>((matrix.outputs + kPad - 1) / kPad * kPad, [&](auto tile) DYNCP_INLINED {
    multiply_tile_together<P, kChainsOfColumns>(
        h, matrix, tile, 0, count, [&](int i) DYNCP_INLINED { return columns + list[i] * stride; },
        [&](int i) DYNCP_INLINED { return list[i]; }, frames, values, results);
  });
}

// ---- products over rows that lie anywhere

// Lane r < count of the result is row r times x; `length` is a multiple of kPad.  With `kept` bits, lanes of the rows
// where a bit is 0 do not enter: there the weights may be anything.
template <Precision P, bool kMasked = false>
DYNCP_INLINE Floats multiply_rows(const char* const* rows, int count, const Activations<P>& x, int length,
                                  const uint16_t* kept = nullptr) {
  // Bytes are never NaN, and the activations of pruned channels are zeros.
  if constexpr (kTakesDigits<P>) return multiply_rows_of_bytes(x.digits, rows, count, length);
  Floats sums[kWidth];
  const auto multiply_group = [&](auto first) DYNCP_INLINED {
    Floats* part = sums + first;
    unrolled<kRowsSideBySide>([&](auto r) DYNCP_INLINED { part[r] = zero<float>(); });
    for_tiles<P, 1>(length, [&](auto tile) DYNCP_INLINED {
      unrolled<kRowsSideBySide>([&](auto r) DYNCP_INLINED {
        tile.for_units(rows[first + r], [&](auto, const Floats* w) DYNCP_INLINED {
          unrolled<decltype(tile)::kVectors>([&](auto v) DYNCP_INLINED {
            const int place = tile.place(v);
            const Floats weights = kMasked ? select(lanes_of(kept, place), w[v], zero<float>()) : w[v];
            part[r] += load(x.values + place) * weights;
          });
        });
      });
    });
  };
  multiply_group(Number<0>{});
#if defined(__AVX512F__)
  if (count <= kRowsSideBySide) return sum_of_eight_rows(sums);
  multiply_group(Number<kRowsSideBySide>{});
#endif
  static_assert(kWidth == kRowsSideBySide * (kVectorBytes == 64 ? 2 : 1));
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

// Stores the products of the rows on the list, which multiply(rows, count) gives for a vector of them; before each,
// calls before(index of its first row).
template <class Multiply, class Before>
DYNCP_INLINE void multiply_listed(const int32_t* list, int count, const char* weights, int64_t stride, float* products,
                                  Multiply multiply, Before before) {
  for (int first = 0; first < count; first += kWidth) {
    before(first);
    const char* rows[kWidth];
    for (int r = 0; r < kWidth; ++r) rows[r] = weights + list[first + r] * stride;
    const int filled = least(kWidth, count - first);
    store_listed(products, list, first, filled, multiply(rows, filled));
  }
}

// Of kFrames frames: vector f of `products` is what multiply_rows gives for frame f.
template <Precision P, int kFrames>
DYNCP_INLINE void multiply_rows_together(const char* const* rows, int count, const float* const* values, int length,
                                         Floats* products) {
  constexpr int kRows = least(kWidth, kVectorRegisters / 2 / kFrames);
  Floats sums[kFrames][kWidth];
  for (int first = 0; first < kWidth; first += kRows) {
    Floats parts[kRows * kFrames];
    unrolled<kRows * kFrames>([&](auto i) DYNCP_INLINED { parts[i] = zero<float>(); });
    if (first < count) {
      for_tiles<P, 1>(length, [&](auto tile) DYNCP_INLINED {
        unrolled<kRows>([&](auto r) DYNCP_INLINED {
          tile.for_units(rows[first + r], [&](auto, const Floats* w) DYNCP_INLINED {
            unrolled<decltype(tile)::kVectors>([&](auto v) DYNCP_INLINED {
              unrolled<kFrames>([&](auto f)
                                    DYNCP_INLINED { parts[f * kRows + r] += load(values[f] + tile.place(v)) * w[v]; });
            });
          });
        });
      });
    }
    unrolled<kRows * kFrames>([&](auto i) DYNCP_INLINED { sums[i / kRows][first + i % kRows] = parts[i]; });
  }
  for (int f = 0; f < kFrames; ++f) products[f] = sum_of_rows(sums[f]);
}

// What multiply_listed gives for each of kFramesTogether or two frames; a row in registers serves them all.
template <Precision P>
void multiply_listed_together(const int32_t* list, int count, const char* weights, int64_t stride, int frames,
                              const float* const* values, int length, float* const* products) {
  for (int first = 0; first < count; first += kWidth) {
    const char* rows[kWidth];
    for (int r = 0; r < kWidth; ++r) rows[r] = weights + list[first + r] * stride;
    const int filled = least(kWidth, count - first);
    Floats of_frames[kFramesTogether<P>];
    if (frames == kFramesTogether<P>) {
      multiply_rows_together<P, kFramesTogether<P>>(rows, filled, values, length, of_frames);
    } else {
      multiply_rows_together<P, 2>(rows, filled, values, length, of_frames);
    }
    for (int f = 0; f < frames; ++f) store_listed(products[f], list, first, filled, of_frames[f]);
  }
}

// Calls use(place, mask of the bits, vector of products) for all places below `length`, where the lanes without a bit
// are anything, or skip(place) where none is listed.  `listed` are the bits of the listed rows, and include `bits`.
template <class Use, class Skip>
DYNCP_INLINE void for_spread(const uint16_t* listed, const uint16_t* bits, int length, const float* products, Use use,
                             Skip skip) {
  for (int i = 0; i < length; i += kPad) {
    const uint32_t word = listed[i / kPad];
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

}  // namespace dyncp::DYNCP_ISA
