// Memory layout of a packed streaming model and of the state of one stream: plain structs and offsets, no pointers, so
// that both live in flat 64-byte aligned buffers that may be copied.  The layout does not depend on the instruction
// set.
//
// Packed model:  PackedHeader, PackedBlock[blocks], payload.
// State:         StateHeader, payload.
//
// Weights come in rows of a multiple of kPad.  float32 and float16 stand in order.  The others are woven, so that a
// shift or a shuffle unpacks whole vectors and every load is aligned: of four vectors w[0..3] of kPad weights, lane for
// lane,
//   bfloat16  two vectors of words of 32 bits with w[0] and w[2] in the lower half and w[1] and w[3] in the upper one.
//   int24     three vectors of words with w[0], w[1], w[2] in the upper three bytes, and w[3] spread over the lowest,
//             its highest byte first.  Up to three vectors left over stand in words of their own.
//   int8      one vector of words with w[0] in the lowest byte and w[3] in the highest.
// With bfloat16 and int24, kernels leave what is below a weight in its word: the packer has rounded the weight so that
// the word comes closest.  Weights of int8 are taken out, because some processors multiply bytes.
//
// Weight forms
//   panel   (inputs x outputs, transposed) split into panels of kPanel outputs: [panel][input][kPanel].  The last panel
//           is as wide as the padded rest.  For products in which every output is wanted.  Those of int8 are not woven:
//           [panel][four inputs][kPanel] words, each with an output's weights for the four, as processors that multiply
//           bytes take them.
//   rows    one for each gated channel, `stride` bytes apart, so that a pruned channel costs no memory access: rows of
//           W_in and columns of W_out for hidden channels, rows of W_out for output channels.
// W_in of gated hidden channels and W_out of gated outputs are there in both forms: where most channels are kept, a sum
// over lanes for each row would cost more than what is left out saves.
// Gated hidden channels stand in the order of their gates' biases, the ones that open most easily first: so the rows
// that most frames read lie side by side, which prefetching processors read nearly as fast as all rows (measured: 13 %
// less time for a network at 25 %).
//
// Vectors are padded with zeros to a multiple of kPad floats, the widest vector of all instruction sets.
#pragma once

#include <cstdint>

namespace dyncp {

constexpr int kPad = 16;
constexpr int kPanel = 64;
constexpr int kLine = 64;
// Bytes that an activation is taken apart into, see kernels/stream_digits.h.
constexpr int kDigits = 2;
// Frames of a chunk that go through a block together, so that its weights come from far away once for all of them.
constexpr int kTileFrames = 8;
// In full scales: far beyond any recording, far below what overflows on its way through a network.
constexpr float kLoudestSample = 1e6f;

enum class Precision : int32_t { float32 = 0, float16 = 1, bfloat16 = 2, int8 = 3, int24 = 4 };
enum class GateKind : int32_t { none = 0, pooled = 1, constant = 2 };
// What needs no frames to come; Pooling in channel_gate.h has further kinds.
enum class StreamPooling : int32_t { average = 0, exponential = 1, window = 2 };

// Of gate networks, whatever the other weights are: scores as exact as float32 gives them.
constexpr Precision kGatePrecision = Precision::float32;

// Integers have a scale for each output channel; times it, the words of 32 bits are the weights.
constexpr bool has_scales(Precision precision) { return precision == Precision::int8 || precision == Precision::int24; }

// Bytes of a row of `length` weights, a multiple of kPad.
constexpr int64_t row_bytes(Precision precision, int64_t length) {
  const int64_t vectors = length / kPad;
  switch (precision) {
    case Precision::float32:
      return 4 * length;
    case Precision::int24:
      return (vectors / 4 * 3 + vectors % 4) * kLine;
    case Precision::bfloat16:
      return (vectors + 1) / 2 * kLine;
    case Precision::int8:
      return (vectors + 3) / 4 * kLine;
    default:
      return 2 * length;
  }
}

// Whether panels have words with an output's weights for four inputs.
constexpr bool has_fours(Precision precision) { return precision == Precision::int8; }

// Bytes of a panel of `width` outputs, a multiple of kPad.
constexpr int64_t panel_bytes(Precision precision, int64_t inputs, int64_t width) {
  return has_fours(precision) ? (inputs + 3) / 4 * 4 * width : inputs * row_bytes(precision, width);
}

struct Geometry {
  int32_t bins, channels, hidden, taps, blocks;
  int32_t has_prelu;
  int32_t gates_hidden, gates_out;  // booleans
  GateKind gate_kind;
  int32_t gate_width;
  StreamPooling pooling;
  int32_t window;
  int32_t n_fft, hop, sample_rate;
  float compression;
};

struct PanelMatrix {
  int64_t weights, bias, scale;  // byte offsets; scale (one float per output) only for integers
  int32_t inputs, outputs;
};

struct PackedBlock {
  int32_t dilation, history_rows;  // rows of the ring: (taps - 1) * dilation + 1
  int32_t columns_are_finite;      // boolean: times 0, every weight of W_out is 0
  float slope_in, slope_dw;        // 0 for ReLU
  PanelMatrix w_in, w_out;         // no weights of w_out with hidden gates, whose columns are as good, but for int8
  int64_t hidden_rows, hidden_columns, out_rows;
  int64_t hidden_order;     // int32 for each place: which hidden channel of the network it is; only with hidden gates
  int64_t b_dw, w_dw;       // [hidden], [tap][hidden]
  PanelMatrix gate_reduce;  // weights as rows
  PanelMatrix gate_expand;  // inputs gate_width, outputs all gates; for a constant gate only bias, the scores
  // Byte offsets into the state: gates as 16 bits per vector of scores, then what is derived from them when they
  // change.
  int64_t history, pool, bits, hidden_list, out_list;
};

struct PackedHeader {
  char magic[8];
  int64_t bytes;
  uint64_t checksum;  // of header and block table, this field as 0
  Precision precision;
  Geometry geometry;
  int32_t channels_padded, hidden_padded, bins_padded, gates, gates_padded;
  int64_t hidden_row_stride, hidden_column_stride, out_row_stride;  // bytes
  PanelMatrix front, back;
  int32_t has_transform;                    // n_fft is a power of two that the core transforms
  int64_t window, twiddles, real_twiddles;  // tables of the transform
  int64_t state_bytes;                      // of one stream
  int64_t products, scores, kept;           // state offsets
  // State offsets of what has a row for each frame of a chunk: gates as bits, of all frames but the last, and floats.
  int64_t chunk_bits, x, hidden_values, sums, reduced, features, mask;
  int64_t shared_bits, shared_list;        // state offsets: rows that frames of a chunk share
  int32_t sums_stride, gate_width_padded;  // floats of such rows
  int64_t digits;                         // state offset: room for the activations of a product as digits; only of int8
  int64_t samples, tail, work, spectrum;  // state offsets of the transform
};

// Kept channels of a block, in the state: an array of these.
struct Kept {
  int32_t hidden, out;
};

// Densities above which a site's weights are read whole, as panels; below, only rows of kept channels are read.
struct Crossover {
  float hidden, out;
};

struct StateHeader {
  char magic[8];
  uint64_t model_checksum;
  int64_t bytes;
  int64_t frames;  // since the start or the last reset
  Crossover crossover;
};

inline const PackedBlock* packed_blocks(const PackedHeader& model) {
  return reinterpret_cast<const PackedBlock*>(reinterpret_cast<const char*>(&model) + sizeof(PackedHeader));
}

template <class T>
inline T* at(void* base, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(base) + offset);
}
template <class T>
inline const T* at(const void* base, int64_t offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(base) + offset);
}

}  // namespace dyncp
