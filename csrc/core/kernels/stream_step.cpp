#include "core/kernels/stream_step.h"

#include "core/kernels/stream_ahead.h"
#include "core/kernels/stream_gates.h"
#include "core/kernels/stream_math.h"
#include "core/kernels/stream_products.h"

namespace dyncp::DYNCP_ISA {
namespace {

DYNCP_INLINE Floats activate(Floats v, float slope) { return prelu<float>(v, slope); }

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

// What follows the products of the listed channels, some of which are kept: all else is as cheap for every channel in
// order as for some of them out of order.
template <Precision P>
void hidden_listed(const PackedHeader& h, const PackedBlock& b, const History& history, const uint16_t* listed,
                   const uint16_t* bits, const float* products, float* z) {
  for_spread(
      listed, bits, h.hidden_padded, products,
      [&](int place, Integers kept, Floats product) DYNCP_INLINED {
        const Floats sum = finished<P>(product, &h, b.w_in, place);
        convolve(h, b, history, place, kept, sum, z);
      },
      [&](int place) DYNCP_INLINED {
        store(history.rows[h.geometry.taps - 1] + place, zero<float>());
        store(z + place, zero<float>());
      });
}

// Products of W_in with only the kept channels, given by their indices (whole vectors of them, the surplus repeated);
// before(i) is called before row i, i a multiple of the vector.
template <Precision P, class Before>
DYNCP_INLINE void multiply_hidden_rows(const PackedHeader& h, const PackedBlock& b, void* state, const int32_t* list,
                                       int count, const float* values, float* products, Before before) {
  const Activations<P> x(DigitOrder::woven, h, state, values, h.channels_padded);
  multiply_listed(
      list, count, at<char>(&h, b.hidden_rows), h.hidden_row_stride, products,
      [&](const char* const* rows, int filled) { return multiply_rows<P>(rows, filled, x, h.channels_padded); },
      before);
}

// ---- the output half: x += W_out z + b_out

// What follows the products of the listed outputs, some of which are kept.
template <Precision P>
void out_listed(const PackedHeader& h, const PackedBlock& b, const uint16_t* listed, const uint16_t* bits,
                const float* products, float* x) {
  for_spread(
      listed, bits, h.channels_padded, products,
      [&](int place, Integers kept, Floats product) DYNCP_INLINED {
        const Floats before = load(x + place);
        store(x + place, select(kept, before + finished<P>(product, &h, b.w_out, place), before));
      },
      [](int) {});
}

// Products of W_out with only the kept outputs; with hidden bits, weights of pruned hidden channels are dropped by
// selection.
template <Precision P, class Before>
DYNCP_INLINE void multiply_out_rows(const PackedHeader& h, const PackedBlock& b, void* state, const int32_t* list,
                                    int count, const float* values, const uint16_t* hidden_bits, float* products,
                                    Before before) {
  const Activations<P> z(DigitOrder::woven, h, state, values, h.hidden_padded);
  const char* weights = at<char>(&h, b.out_rows);
  const auto multiply = [&](const char* const* rows, int filled) {
    return hidden_bits != nullptr ? multiply_rows<P, true>(rows, filled, z, h.hidden_padded, hidden_bits)
                                  : multiply_rows<P>(rows, filled, z, h.hidden_padded);
  };
  multiply_listed(list, count, weights, h.out_row_stride, products, multiply, before);
}

DYNCP_INLINE void add_output(const uint16_t* bits, int place, Floats sum, float* x) {
  const Floats before = load(x + place), y = before + sum;
  store(x + place, bits == nullptr ? y : select(lanes_of(bits, place), y, before));
}

// ---- blocks

// Frames that go through the network together, each with a row of everything: of one stream, or of several.
struct Chunk {
  int frames;
  int block;           // at hand
  bool asks_for_rows;  // of the next block, while those of this one are multiplied
  void* room;          // the state in which the rows lie
  void* states[kTileFrames];
  int64_t before[kTileFrames];  // frames of the stream before this one
  float *x[kTileFrames], *z[kTileFrames], *sums[kTileFrames], *reduced[kTileFrames];
  // Of that block; bits are null without such gates.
  FrameGates gates[kTileFrames];
  const uint16_t *hidden_bits[kTileFrames], *out_bits[kTileFrames];

  bool is_first_of_stream(int t) const { return t == 0 || states[t - 1] != states[t]; }
  bool is_last_of_stream(int t) const { return t + 1 == frames || states[t + 1] != states[t]; }
};

bool is_above(float crossover, int kept, int all) {
  return static_cast<float>(kept) > crossover * static_cast<float>(all);
}

bool reads_all_hidden(const PackedHeader& h, const void* state, Kept kept) {
  return is_above(static_cast<const StateHeader*>(state)->crossover.hidden, kept.hidden, h.geometry.hidden);
}

bool reads_all_outputs(const PackedHeader& h, const void* state, Kept kept) {
  return !h.geometry.gates_out ||
         is_above(static_cast<const StateHeader*>(state)->crossover.out, kept.out, h.geometry.channels);
}

// With hidden gates: whether they leave anything for the outputs, and whether the rows of kept outputs are fewer
// weights than the columns of kept hidden channels.
bool has_outputs(const Geometry& g, Kept kept) { return kept.hidden > 0 && (!g.gates_out || kept.out > 0); }
bool reads_out_rows(const Geometry& g, Kept kept) {
  return g.gates_out && int64_t{kept.out} * g.hidden < int64_t{kept.hidden} * g.channels;
}

// The rows of W_in, or with `of_outputs` of W_out, that block n will read for the next frame of a stream if it keeps
// what the last one kept: none where it reads all, or where there is no such block.
RowsAhead expected_rows(const PackedHeader& h, int n, void* state, bool of_outputs) {
  if (n >= h.geometry.blocks) return {};
  const PackedBlock& b = packed_blocks(h)[n];
  const Kept kept = at<Kept>(state, h.kept)[n];
  if (of_outputs) {
    if (reads_all_outputs(h, state, kept)) return {};
    return {at<char>(&h, b.out_rows), h.out_row_stride, at<int32_t>(state, b.out_list), kept.out};
  }
  if (!h.geometry.gates_hidden || reads_all_hidden(h, state, kept)) return {};
  return {at<char>(&h, b.hidden_rows), h.hidden_row_stride, at<int32_t>(state, b.hidden_list), kept.hidden};
}

// Asks for what a gated block n will read for the next frame of a stream, but for rows.  Matrices that are read whole
// are left to the processor, which sees that they are read in order.
void ask_for_block(const PackedHeader& h, int n, void* state, int64_t frames) {
  // Else a compiler that sees no effect in this function leaves out its calls.
  __asm__ volatile("");
  const Geometry& g = h.geometry;
  const PackedBlock& b = packed_blocks(h)[n];
  if (g.gate_kind == GateKind::pooled) {
    ask_for(at<char>(&h, b.gate_reduce.weights), g.gate_width * row_bytes(kGatePrecision, h.channels_padded));
    ask_for(at<char>(&h, b.gate_expand.bias), int64_t{4} * h.gates_padded);
    ask_for(at<char>(&h, b.gate_expand.weights), g.gate_width * row_bytes(kGatePrecision, h.gates_padded));
    ask_for(at<char>(state, b.pool), int64_t{4} * h.gate_width_padded);
  }
  ask_for(at<char>(&h, b.b_dw), int64_t{4} * h.hidden_padded);
  ask_for(at<char>(&h, b.w_dw), int64_t{4} * h.hidden_padded * g.taps);
  const History history = find_history(h, b, state, frames);
  for (int k = 0; k < g.taps; ++k) ask_for(history.rows[k], int64_t{4} * h.hidden_padded);
}

// With hidden gates, what comes before W_out, for one frame alone, whose kept channels are listed.
template <Precision P>
void expand_alone(const PackedHeader& h, const PackedBlock& b, const Chunk& chunk, int t) {
  void* state = chunk.states[t];
  const History history = find_history(h, b, state, chunk.before[t]);
  const Kept kept = chunk.gates[t].kept;
  const uint16_t* bits = chunk.hidden_bits[t];
  float *z = chunk.z[t], *products = at<float>(state, h.products);
  if (reads_all_hidden(h, state, kept)) {
    multiply_panels<P>(h, state, b.w_in, chunk.x[t], [&](int place, Floats sum) { store(z + place, sum); });
    hidden_dense(h, b, history, bits, z, z);
  } else {
    const auto* list = at<int32_t>(state, b.hidden_list);
    RowsAhead columns, next;
    if (chunk.asks_for_rows) {
      columns = {at<char>(&h, b.hidden_columns), h.hidden_column_stride, list, kept.hidden};
      next = expected_rows(h, chunk.block + 1, state, false);
    }
    multiply_hidden_rows<P>(h, b, state, list, kept.hidden, chunk.x[t], products, [&](int first) DYNCP_INLINED {
      columns.ask(first, first + kWidth);
      next.ask(first, first + kWidth);
    });
    next.ask((kept.hidden + kWidth - 1) / kWidth * kWidth, next.count);
    hidden_listed<P>(h, b, history, bits, bits, products, z);
  }
}

// W_out, likewise.
template <Precision P>
void project_alone(const PackedHeader& h, const PackedBlock& b, const Chunk& chunk, int t) {
  const Geometry& g = h.geometry;
  void* state = chunk.states[t];
  const Kept kept = chunk.gates[t].kept;
  const uint16_t* bits = chunk.out_bits[t];
  float *x = chunk.x[t], *products = at<float>(state, h.products);
  const auto add = [&](int place, Floats sum) DYNCP_INLINED { add_output(bits, place, sum, x); };
  if (g.gates_hidden && !has_outputs(g, kept)) return;
  if (g.gates_hidden ? reads_out_rows(g, kept) : !reads_all_outputs(h, state, kept)) {
    RowsAhead next;
    if (chunk.asks_for_rows) next = expected_rows(h, chunk.block + 1, state, true);
    multiply_out_rows<P>(h, b, state, at<int32_t>(state, b.out_list), kept.out, chunk.z[t], chunk.hidden_bits[t],
                         products, [&](int first) DYNCP_INLINED { next.ask(first, first + kWidth); });
    next.ask((kept.out + kWidth - 1) / kWidth * kWidth, next.count);
    out_listed<P>(h, b, bits, bits, products, x);
  } else if (g.gates_hidden && !(has_fours(P) && reads_all_hidden(h, state, kept))) {
    multiply_columns<P>(h, state, b.w_out, at<char>(&h, b.hidden_columns), h.hidden_column_stride,
                        at<int32_t>(state, b.hidden_list), kept.hidden, chunk.z[t], add);
  } else {
    multiply_panels<P>(h, state, b.w_out, chunk.z[t], add);
  }
}

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

// Frames of a group, side by side there, that read what any of them keeps once for all.
struct Sharing {
  int first, frames;
  const uint16_t* bits;  // of what any of them keeps
};

// The frames of a group for which sharing takes less time than reading only their own rows; returns how many sharings
// that makes.  `bits` are those of all frames of the chunk; `room` takes the bits of the sharings.
template <Precision P>
int find_sharings(const Group& group, const uint16_t* const* bits, int units, uint16_t* room, Sharing* sharings) {
  int count = 0, frames = 0;
  for (int first = 0; first + 2 <= group.frames; first += frames) {
    frames = frames_together<P>(group.frames - first);
    int kept = 0;
    for (int unit = 0; unit < units; ++unit) room[unit] = 0;
    for (int f = first; f < first + frames; ++f) {
      const uint16_t* own = bits[group.members[f]];
      kept += count_bits(own, units);
      for (int unit = 0; unit < units; ++unit) room[unit] |= own[unit];
    }
    // A row that serves one frame takes the time of two products, measured.
    if (count_bits(room, units) * frames > 2 * kept) continue;
    sharings[count++] = {first, frames, room};
    room += units;
  }
  return count;
}

// Products of the rows that frames share go to the sums of those; listed[t] becomes the bits of the rows of frame t of
// the chunk, and stays null for frames that share none.
template <Precision P>
void multiply_shared_rows(const PackedHeader& h, void* state, const Group& group, const uint16_t* const* bits,
                          int units, const char* weights, int64_t stride, int length, const uint16_t** listed) {
  if constexpr (kTakesDigits<P>) return;
  Sharing sharings[kTileFrames];
  const int count = find_sharings<P>(group, bits, units, at<uint16_t>(state, h.shared_bits), sharings);
  int32_t* list = at<int32_t>(state, h.shared_list);
  for (int i = 0; i < count; ++i) {
    const auto [first, frames, any] = sharings[i];
    const int rows = list_bits(any, units, list);
    multiply_listed_together<P>(list, rows, weights, stride, frames, group.values + first, length, group.sums + first);
    for (int f = first; f < first + frames; ++f) listed[group.members[f]] = any;
  }
}

// With hidden gates, all frames of a chunk.
template <Precision P>
void expand_and_project(const PackedHeader& h, const PackedBlock& b, const Chunk& chunk) {
  const Geometry& g = h.geometry;
  const int units = h.hidden_padded / kPad;
  Group dense, gathered, with_columns;
  const uint16_t* listed[kTileFrames] = {};
  for (int t = 0; t < chunk.frames; ++t) {
    const Kept kept = chunk.gates[t].kept;
    (reads_all_hidden(h, chunk.states[t], kept) ? dense : gathered).add(t, chunk.x[t], chunk.sums[t]);
    if (has_outputs(g, kept) && !reads_out_rows(g, kept)) with_columns.add(t, chunk.z[t], chunk.sums[t]);
  }
  multiply_panels_of_frames<P>(h, chunk.room, b.w_in, dense.frames, dense.values, dense.sums,
                               [&](int f, int place, Floats sum) { store(dense.sums[f] + place, sum); });
  multiply_shared_rows<P>(h, chunk.room, gathered, chunk.hidden_bits, units, at<char>(&h, b.hidden_rows),
                          h.hidden_row_stride, h.channels_padded, listed);
  Sharing sharings[kTileFrames];
  int shared = 0;
  bool is_shared[kTileFrames] = {};
  if (!kTakesDigits<P> && b.columns_are_finite) {
    uint16_t* room = at<uint16_t>(chunk.room, h.shared_bits) + kTileFrames * units;
    shared = find_sharings<P>(with_columns, chunk.hidden_bits, units, room, sharings);
  }
  for (int i = 0; i < shared; ++i) {
    for (int f = 0; f < sharings[i].frames; ++f) is_shared[with_columns.members[sharings[i].first + f]] = true;
  }
  for (int t = 0; t < chunk.frames; ++t) {
    const FrameGates& gates = chunk.gates[t];
    void* state = chunk.states[t];
    if (gates.changed) list_kept(h, b, state, gates.bits);
    if (reads_all_hidden(h, state, gates.kept)) {
      const History history = find_history(h, b, state, chunk.before[t]);
      hidden_dense(h, b, history, chunk.hidden_bits[t], chunk.sums[t], chunk.z[t]);
    } else if (listed[t] != nullptr) {
      const History history = find_history(h, b, state, chunk.before[t]);
      hidden_listed<P>(h, b, history, listed[t], chunk.hidden_bits[t], chunk.sums[t], chunk.z[t]);
    } else {
      expand_alone<P>(h, b, chunk, t);
    }
    if (!is_shared[t]) project_alone<P>(h, b, chunk, t);
  }
  int32_t* list = at<int32_t>(chunk.room, h.shared_list);
  for (int i = 0; i < shared; ++i) {
    const auto [first, frames, any] = sharings[i];
    const int count = list_bits(any, units, list);
    multiply_columns_together<P>(h, b.w_out, at<char>(&h, b.hidden_columns), h.hidden_column_stride, list, count,
                                 frames, with_columns.values + first, with_columns.sums + first);
    for (int f = first; f < first + frames; ++f) {
      const int t = with_columns.members[f];
      for (int place = 0; place < h.channels_padded; place += kWidth) {
        add_output(chunk.out_bits[t], place, load(chunk.sums[t] + place), chunk.x[t]);
      }
    }
  }
}

// Without hidden gates, W_out of all frames of a chunk.
template <Precision P>
void project(const PackedHeader& h, const PackedBlock& b, const Chunk& chunk) {
  const Geometry& g = h.geometry;
  Group dense, gathered;
  const uint16_t* listed[kTileFrames] = {};
  for (int t = 0; t < chunk.frames; ++t) {
    (reads_all_outputs(h, chunk.states[t], chunk.gates[t].kept) ? dense : gathered).add(t, chunk.z[t], chunk.sums[t]);
  }
  multiply_shared_rows<P>(h, chunk.room, gathered, chunk.out_bits, h.channels_padded / kPad, at<char>(&h, b.out_rows),
                          h.out_row_stride, h.hidden_padded, listed);
  for (int t = 0; g.gates_out && t < chunk.frames; ++t) {
    const FrameGates& gates = chunk.gates[t];
    if (gates.changed) list_kept(h, b, chunk.states[t], gates.bits);
    if (listed[t] != nullptr) {
      out_listed<P>(h, b, listed[t], gates.bits, chunk.sums[t], chunk.x[t]);
    } else if (!reads_all_outputs(h, chunk.states[t], gates.kept)) {
      project_alone<P>(h, b, chunk, t);
    }
  }
  multiply_panels_of_frames<P>(h, chunk.room, b.w_out, dense.frames, dense.values, dense.sums,
                               [&](int f, int place, Floats sum) {
                                 add_output(chunk.out_bits[dense.members[f]], place, sum, chunk.x[dense.members[f]]);
                               });
}

// Decides the gates of block n for all frames of a chunk.
void decide_all(const PackedHeader& h, const PackedBlock& b, int n, const StreamFrame* frames, Chunk& chunk) {
  const Geometry& g = h.geometry;
  FrameGates before{};
  for (int t = 0; t < chunk.frames; ++t) {
    void* state = chunk.states[t];
    Kept* kept = at<Kept>(state, h.kept) + n;
    auto* last = at<uint16_t>(state, b.bits);
    if (chunk.is_first_of_stream(t)) before = {last, false, *kept};
    FrameGates& gates = chunk.gates[t];
    const bool is_last = chunk.is_last_of_stream(t);
    gates.bits = is_last ? last : at<uint16_t>(chunk.room, h.chunk_bits) + t * (h.gates_padded / kPad);
    decide(h, b, state, chunk.reduced[t], frames[t].shift, before, &gates);
    before = gates;
    if (is_last) *kept = gates.kept;
    if (g.gates_out) chunk.out_bits[t] = gates.bits;
    if (g.gates_hidden) chunk.hidden_bits[t] = gates.bits + (g.gates_out ? h.channels_padded / kPad : 0);
    if (frames[t].gates != nullptr) unpack_gates(h, b, gates.bits, frames[t].gates + int64_t{n} * h.gates);
  }
}

template <Precision P>
void run_block(const PackedHeader& h, int n, const StreamFrame* frames, Chunk& chunk) {
  const Geometry& g = h.geometry;
  const PackedBlock& b = packed_blocks(h)[n];
  chunk.block = n;
  if (g.gate_kind == GateKind::pooled) {
    for (int t = 0; t < chunk.frames; ++t) {
      reduce(h, b, chunk.states[t], chunk.before[t], chunk.x[t], chunk.reduced[t]);
    }
  }
  // Needs no gates, so that it hides how long they take.
  if (!g.gates_hidden) {
    multiply_panels_of_frames<P>(h, chunk.room, b.w_in, chunk.frames, chunk.x, chunk.sums,
                                 [&](int t, int place, Floats sum) { store(chunk.sums[t] + place, sum); });
    for (int t = 0; t < chunk.frames; ++t) {
      hidden_dense(h, b, find_history(h, b, chunk.states[t], chunk.before[t]), nullptr, chunk.sums[t], chunk.z[t]);
    }
  }
  if (g.gate_kind != GateKind::none) decide_all(h, b, n, frames, chunk);
  if (chunk.frames == 1) {
    if (chunk.gates[0].changed) list_kept(h, b, chunk.states[0], chunk.gates[0].bits);
    if (g.gates_hidden) expand_alone<P>(h, b, chunk, 0);
    project_alone<P>(h, b, chunk, 0);
  } else if (g.gates_hidden) {
    expand_and_project<P>(h, b, chunk);
  } else {
    project<P>(h, b, chunk);
  }
}

template <Precision P>
void step_with(const PackedHeader& h, const StreamFrame* frames, int count, bool are_cold) {
  const Geometry& g = h.geometry;
  Chunk chunk{};
  chunk.frames = count;
  chunk.asks_for_rows = are_cold && count == 1;
  void* room = chunk.room = frames[0].state;
  const float* inputs[kTileFrames] = {};
  for (int t = 0; t < count; ++t) {
    inputs[t] = frames[t].features;
    chunk.states[t] = frames[t].state;
    chunk.before[t] = chunk.is_first_of_stream(t) ? static_cast<const StateHeader*>(frames[t].state)->frames
                                                  : chunk.before[t - 1] + 1;
    chunk.x[t] = at<float>(room, h.x) + int64_t{t} * h.channels_padded;
    chunk.z[t] = at<float>(room, h.hidden_values) + int64_t{t} * h.hidden_padded;
    chunk.sums[t] = at<float>(room, h.sums) + int64_t{t} * h.sums_stride;
    chunk.reduced[t] = at<float>(room, h.reduced) + int64_t{t} * h.gate_width_padded;
  }
  const auto look_ahead = [&](int n) {
    if (!are_cold || n >= g.blocks) return;
    ask_for_block(h, n, room, chunk.before[0]);
    if (n > 0 && chunk.asks_for_rows) return;
    for (bool of_outputs : {false, true}) {
      const RowsAhead rows = expected_rows(h, n, room, of_outputs);
      rows.ask(0, rows.count);
    }
  };
  look_ahead(0);
  multiply_panels_of_frames<P>(h, room, h.front, count, inputs, chunk.x,
                               [&](int t, int place, Floats sum) { store(chunk.x[t] + place, relu<float>(sum)); });
  for (int n = 0; n < g.blocks; ++n) {
    look_ahead(n + 1);
    run_block<P>(h, n, frames, chunk);
  }
  for (int t = 0; t < count; ++t) ++static_cast<StateHeader*>(frames[t].state)->frames;
  multiply_panels_of_frames<P>(h, room, h.back, count, chunk.x, chunk.sums, [&](int t, int place, Floats logits) {
    float* mask = frames[t].mask + place;
    if (place + kWidth <= g.bins) {
      store(mask, sigmoid(logits));
    } else if (place < g.bins) {
      store_first(mask, sigmoid(logits), g.bins - place);
    }
  });
}

void step(const PackedHeader& model, const StreamFrame* frames, int count, bool are_cold) {
  switch (model.precision) {
    case Precision::float32:
      return step_with<Precision::float32>(model, frames, count, are_cold);
    case Precision::float16:
      return step_with<Precision::float16>(model, frames, count, are_cold);
    case Precision::bfloat16:
      return step_with<Precision::bfloat16>(model, frames, count, are_cold);
    case Precision::int8:
      return step_with<Precision::int8>(model, frames, count, are_cold);
    case Precision::int24:
      return step_with<Precision::int24>(model, frames, count, are_cold);
  }
}

}  // namespace

const StreamKernels stream_kernels = {step, analyse, synthesise};

}  // namespace dyncp::DYNCP_ISA
