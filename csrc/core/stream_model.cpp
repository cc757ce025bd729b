#include "core/stream_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <iterator>
#include <numeric>
#include <optional>
#include <stdexcept>

namespace dyncp {
namespace {

constexpr char kMagic[8] = {'D', 'Y', 'N', 'C', 'P', 'P', '0', '1'};
constexpr int64_t kMostBytes = int64_t{1} << 31;
const char* const kPrecisionNames[] = {"float32", "float16", "bfloat16", "int8", "int24"};

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
int padded(int count) { return static_cast<int>(rounded_up(count, kPad)); }

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

uint16_t half_bits(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    const float steps = std::nearbyint(std::fabs(value) * 0x1p24f);
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(steps));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

// The word that is closest to `value` as a float, given its lower half.  Unless that is 0 the word must not come out
// denormal, which would be slow, however small the value; an infinite one becomes NaN.
uint32_t closest_bfloat16(float value, uint32_t below) {
  constexpr int64_t kMost = 0x7f7f, kNan = 0x7fc0;  // the largest finite one
  const int64_t least = below == 0 ? 0 : 0x0d80;    // 2^-100
  const uint32_t bits = bits_of(value);
  const int64_t magnitude = bits & 0x7fffffff;
  const int64_t upper = (magnitude - below + 0x8000) >> 16;
  const int64_t chosen = magnitude >= 0x7f800000 ? kNan : std::clamp(upper, least, kMost);
  return (bits & 0x80000000) | static_cast<uint32_t>(chosen) << 16 | below;
}

// Symmetric integers per output channel, as words of 32 bits: the largest weight is the largest word whose lower bytes
// are zero.  NaN and infinity count as 0: where hidden channels are gated, those of a pruned one must not spoil a scale
// that it shares with others.  1 for floats.
float scale_of(Precision precision, const float* row, int64_t count) {
  if (!has_scales(precision)) return 1.0f;
  float most = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(row[i]) && std::fabs(row[i]) > most) most = std::fabs(row[i]);
  }
  return most / (precision == Precision::int8 ? 0x7f000000 : 0x7fffff00);
}

// A weight in units of its scale; 0 where that is no number.
double quotient_of(float weight, float scale) {
  const double quotient = static_cast<double>(weight) / scale;
  return std::isfinite(quotient) ? quotient : 0;
}

// The byte that, at the top of a word, comes closest to `wanted`.
uint32_t closest_byte(double wanted) {
  return static_cast<uint8_t>(static_cast<int8_t>(std::clamp(std::nearbyint(wanted * 0x1p-24), -127.0, 127.0)));
}

// The word of 24 upper bits that comes closest to `wanted`, given those below.
uint32_t closest_word(double wanted, uint32_t below) {
  const double whole = std::clamp(std::nearbyint((wanted - below) * 0x1p-8), -0x1p23, 0x1p23 - 1);
  return static_cast<uint32_t>(static_cast<int64_t>(whole * 0x1p8)) | below;
}

class Writer {
 public:
  Writer(Precision precision, char* base) : precision_(precision), base_(base) {}

  // Stores a row of weights, padded with zeros; `scales` is one for each of them.
  void row(int64_t offset, const std::vector<float>& weights, const std::vector<float>& scales) {
    char* to = base_ + offset;
    const size_t count = weights.size();
    switch (precision_) {
      case Precision::float32:
        std::memcpy(to, weights.data(), count * sizeof(float));
        return;
      case Precision::float16:
        for (size_t i = 0; i < count; ++i) reinterpret_cast<uint16_t*>(to)[i] = half_bits(weights[i]);
        return;
      case Precision::bfloat16:
        bfloat16_row(reinterpret_cast<uint32_t*>(to), weights);
        return;
      case Precision::int8:
      case Precision::int24:
        break;
    }
    auto* words = reinterpret_cast<uint32_t*>(to);
    for (size_t first = 0; first < count; first += 4 * kPad) {
      for (size_t lane = 0; lane < kPad; ++lane) {
        double wanted[4] = {};
        for (size_t j = 0, i = first + lane; j < 4 && i < count; ++j, i += kPad) {
          wanted[j] = quotient_of(weights[i], scales[i]);
        }
        if (precision_ == Precision::int8) {
          uint32_t word = 0;
          for (int j = 0; j < 4; ++j) word |= closest_byte(wanted[j]) << 8 * j;
          words[lane] = word;
          continue;
        }
        const bool has_four = first + 3 * kPad < count;
        const uint32_t last = has_four ? closest_word(wanted[3], 0) : 0;
        for (size_t j = 0; j < 3 && first + j * kPad < count; ++j) {
          words[j * kPad + lane] = closest_word(wanted[j], last >> (24 - 8 * j) & 0xff);
        }
      }
      words += precision_ == Precision::int8 ? kPad : 3 * kPad;
    }
  }

  // The same as bytes, one in every word.
  void bytes(int64_t offset, const std::vector<float>& weights, const std::vector<float>& scales) {
    for (size_t i = 0; i < weights.size(); ++i) {
      base_[offset + 4 * i] = static_cast<char>(closest_byte(quotient_of(weights[i], scales[i])));
    }
  }

  static void bfloat16_row(uint32_t* words, const std::vector<float>& weights) {
    for (size_t first = 0; first < weights.size(); first += 2 * kPad) {
      for (size_t lane = 0; lane < kPad && first + lane < weights.size(); ++lane) {
        const size_t upper = first + kPad + lane;
        const uint32_t below = closest_bfloat16(weights[first + lane], 0) >> 16;
        words[first / 2 + lane] = upper < weights.size() ? closest_bfloat16(weights[upper], below) : below;
      }
    }
  }

  float* floats(int64_t offset) { return reinterpret_cast<float*>(base_ + offset); }
  Precision precision() const { return precision_; }

 private:
  Precision precision_;
  char* base_;
};

// Hands out aligned offsets in the order of use, so that the engine reads the model front to back.
class Allocator {
 public:
  explicit Allocator(int64_t start) : next_(rounded_up(start, kLine)) {}
  int64_t take(int64_t bytes, int64_t alignment = kLine) {
    const int64_t offset = rounded_up(next_, alignment);
    next_ = rounded_up(offset + bytes, kLine);
    if (next_ > kMostBytes) throw std::invalid_argument("pack: the model must stay below 2 GiB");
    return offset;
  }
  int64_t floats(int64_t count) { return take(count * 4); }
  int64_t end() const { return next_; }

 private:
  int64_t next_;
};

// All of a matrix but its weights.
PanelMatrix take_outputs(Allocator& memory, Precision precision, int inputs, int outputs) {
  PanelMatrix matrix{};
  matrix.inputs = inputs;
  matrix.outputs = outputs;
  matrix.bias = memory.floats(padded(outputs));
  if (has_scales(precision)) matrix.scale = memory.floats(padded(outputs));
  return matrix;
}

PanelMatrix take_panel(Allocator& memory, Precision precision, int inputs, int outputs) {
  PanelMatrix matrix = take_outputs(memory, precision, inputs, outputs);
  const int64_t panels = padded(outputs) / kPanel, rest = padded(outputs) % kPanel;
  matrix.weights = memory.take(panels * panel_bytes(precision, inputs, kPanel) + panel_bytes(precision, inputs, rest));
  return matrix;
}

std::vector<float> scales_of(Precision precision, const float* weights, int inputs, int outputs) {
  std::vector<float> scales(outputs);
  for (int o = 0; o < outputs; ++o) scales[o] = scale_of(precision, weights + int64_t{o} * inputs, inputs);
  return scales;
}

// Stores all but the weights, and returns the scales.
std::vector<float> fill_outputs(Writer& writer, const PanelMatrix& matrix, const float* weights, const float* bias) {
  std::vector<float> scales = scales_of(writer.precision(), weights, matrix.inputs, matrix.outputs);
  if (has_scales(writer.precision())) std::copy(scales.begin(), scales.end(), writer.floats(matrix.scale));
  std::copy_n(bias, matrix.outputs, writer.floats(matrix.bias));
  return scales;
}

// `weights` is (outputs, inputs) row-major; returns the scales.
std::vector<float> fill_panel(Writer& writer, const PanelMatrix& matrix, const float* weights, const float* bias) {
  const int outputs = matrix.outputs, inputs = matrix.inputs;
  const std::vector<float> scales = fill_outputs(writer, matrix, weights, bias);
  int64_t offset = matrix.weights;
  for (int panel = 0; panel < outputs; panel += kPanel) {
    const int width = std::min(kPanel, outputs - panel);
    const std::vector<float> own_scales(scales.begin() + panel, scales.begin() + panel + width);
    std::vector<float> row(width);
    for (int i = 0; i < inputs; ++i) {
      for (int o = 0; o < width; ++o) row[o] = weights[int64_t{panel + o} * inputs + i];
      if (has_fours(writer.precision())) {
        writer.bytes(offset + int64_t{i / 4} * 4 * padded(width) + i % 4, row, own_scales);
      } else {
        writer.row(offset + i * row_bytes(writer.precision(), padded(width)), row, own_scales);
      }
    }
    offset += panel_bytes(writer.precision(), inputs, padded(width));
  }
  return scales;
}

// Rows of (outputs, inputs) weights, `stride` bytes apart.
void fill_rows(Writer& writer, int64_t offset, int64_t stride, const float* weights, int inputs,
               const std::vector<float>& scales) {
  for (size_t o = 0; o < scales.size(); ++o) {
    const float* row = weights + static_cast<int64_t>(o) * inputs;
    writer.row(offset + static_cast<int64_t>(o) * stride, {row, row + inputs}, std::vector<float>(inputs, scales[o]));
  }
}

bool has_out_panel(const PackedHeader& h) { return !h.geometry.gates_hidden || has_fours(h.precision); }

struct Plan {
  PackedHeader header{};
  std::vector<PackedBlock> blocks;
};

bool is_power_of_two(int value) { return value > 0 && (value & (value - 1)) == 0; }

Plan plan_model(const FoldedView& folded, Precision precision, int64_t row_alignment) {
  const Geometry& g = folded.geometry;
  check_geometry(g);
  if (row_alignment < kLine || (row_alignment & (row_alignment - 1)) != 0) {
    throw std::invalid_argument("pack: row_alignment must be a power of two of at least 64");
  }
  Plan plan;
  PackedHeader& h = plan.header;
  std::memcpy(h.magic, kMagic, sizeof(kMagic));
  h.precision = precision;
  h.geometry = g;
  h.channels_padded = padded(g.channels);
  h.hidden_padded = padded(g.hidden);
  h.bins_padded = padded(g.bins);
  h.gates = g.channels * g.gates_out + g.hidden * g.gates_hidden;
  // Each site starts on a fresh vector, so its gates never share one with the other site's.
  h.gates_padded = h.channels_padded * g.gates_out + h.hidden_padded * g.gates_hidden;
  h.hidden_row_stride = h.hidden_column_stride = rounded_up(row_bytes(precision, h.channels_padded), row_alignment);
  h.out_row_stride = rounded_up(row_bytes(precision, h.hidden_padded), row_alignment);

  Allocator memory(sizeof(PackedHeader) + sizeof(PackedBlock) * g.blocks);
  Allocator state(sizeof(StateHeader));
  h.has_transform = is_power_of_two(g.n_fft) && g.n_fft >= 8;
  if (h.has_transform) {
    h.window = memory.floats(g.n_fft);
    h.twiddles = memory.floats(3 * g.n_fft);
    h.real_twiddles = memory.floats(g.n_fft + 2 * kPad);
    h.samples = state.floats(g.n_fft);
    h.tail = state.floats(g.n_fft);
    h.work = state.floats(4 * int64_t{g.n_fft} + 8 * kPad);
    h.spectrum = state.floats(kTileFrames * (2 * int64_t{h.bins_padded} + 2 * kPad));
    h.features = state.floats(kTileFrames * h.bins_padded);
    h.mask = state.floats(kTileFrames * h.bins_padded);
  }
  h.x = state.floats(kTileFrames * h.channels_padded);
  h.hidden_values = state.floats(kTileFrames * h.hidden_padded);
  h.sums_stride = std::max({h.bins_padded, h.channels_padded, h.hidden_padded});
  h.sums = state.floats(kTileFrames * int64_t{h.sums_stride});
  h.products = state.floats(std::max(h.hidden_padded, h.channels_padded) + kPad);
  h.gate_width_padded = padded(g.gate_width);
  h.reduced = state.floats(kTileFrames * h.gate_width_padded);
  const int most_rows = std::max(h.hidden_padded, h.channels_padded);
  h.shared_bits = state.take(2 * kTileFrames * (most_rows / kPad) * 2);
  h.shared_list = state.floats(most_rows + kPad);
  h.chunk_bits = state.take(kTileFrames * (h.gates_padded / kPad) * 2);
  h.scores = state.floats(h.gates_padded);
  if (precision == Precision::int8) {
    h.digits = state.take(kDigits * rounded_up(std::max({g.bins, g.channels, g.hidden}), kLine));
  }
  h.kept = state.take(static_cast<int64_t>(sizeof(Kept)) * g.blocks);

  h.front = take_panel(memory, precision, g.bins, g.channels);
  for (const FoldedBlockView& source : folded.blocks) {
    PackedBlock b{};
    b.dilation = source.dilation;
    b.history_rows = (g.taps - 1) * source.dilation + 1;
    b.slope_in = source.slope_in ? *source.slope_in : 0.0f;
    b.slope_dw = source.slope_dw ? *source.slope_dw : 0.0f;
    // Of the smallest floats that weights are packed as.
    constexpr float kMost = 65504;
    b.columns_are_finite = std::all_of(source.w_out, source.w_out + int64_t{g.channels} * g.hidden,
                                       [](float w) { return std::fabs(w) <= kMost; });
    if (g.gate_kind == GateKind::pooled) {
      b.gate_reduce = take_outputs(memory, kGatePrecision, g.channels, g.gate_width);
      b.gate_reduce.weights = memory.take(g.gate_width * row_bytes(kGatePrecision, h.channels_padded));
      b.gate_expand = take_panel(memory, kGatePrecision, g.gate_width, h.gates_padded);
    } else if (g.gate_kind == GateKind::constant) {
      b.gate_expand.bias = memory.floats(h.gates_padded);
    }
    b.w_in = take_panel(memory, precision, g.channels, g.hidden);
    b.b_dw = memory.floats(h.hidden_padded);
    b.w_dw = memory.floats(int64_t{h.hidden_padded} * g.taps);
    b.w_out = has_out_panel(h) ? take_panel(memory, precision, g.hidden, g.channels)
                               : take_outputs(memory, precision, g.hidden, g.channels);
    if (g.gates_hidden) {
      b.hidden_order = memory.take(4 * int64_t{g.hidden});
      b.hidden_columns = memory.take(h.hidden_column_stride * g.hidden, row_alignment);
    }

    b.history = state.floats(int64_t{h.hidden_padded} * b.history_rows);
    if (g.gate_kind == GateKind::pooled) {
      b.pool = state.floats(int64_t{h.gate_width_padded} * (g.pooling == StreamPooling::window ? g.window : 1));
    }
    b.bits = state.take(h.gates_padded / kPad * 2);
    b.hidden_list = state.floats(h.hidden_padded + kPad);
    b.out_list = state.floats(h.channels_padded + kPad);
    plan.blocks.push_back(b);
  }
  h.back = take_panel(memory, precision, g.channels, g.bins);
  // What only some frames read must not interrupt the rest, which every frame reads front to back.
  for (PackedBlock& b : plan.blocks) {
    if (g.gates_hidden) b.hidden_rows = memory.take(h.hidden_row_stride * g.hidden, row_alignment);
    if (g.gates_out) b.out_rows = memory.take(h.out_row_stride * g.channels, row_alignment);
  }
  h.bytes = memory.end();
  h.state_bytes = state.end();
  return plan;
}

uint64_t checksum_of(const PackedHeader& header, const PackedBlock* blocks) {
  PackedHeader copy;
  std::memcpy(&copy, &header, sizeof(copy));  // with its padding bytes, which the packer has zeroed
  copy.checksum = 0;
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  };
  add(&copy, sizeof(copy));
  add(blocks, sizeof(PackedBlock) * header.geometry.blocks);
  return hash;
}

// A block with gated hidden channels, these in the order in which they are packed.
struct Ordered {
  Ordered(const Geometry& g, const FoldedBlockView& source) : order(g.hidden), view(source) {
    const int outputs = g.channels * g.gates_out;
    const float* biases = source.gate_expand_bias + outputs;
    const auto bias = [&](int32_t channel) { return std::isnan(biases[channel]) ? -INFINITY : biases[channel]; };
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return bias(a) > bias(b); });

    view.w_in = pick_rows(source.w_in, g.channels);
    view.b_in = pick_rows(source.b_in, 1);
    view.w_dw = pick_rows(source.w_dw, g.taps);
    view.b_dw = pick_rows(source.b_dw, 1);
    view.gate_expand_bias = pick_rows(source.gate_expand_bias, 1, outputs);
    if (g.gate_kind == GateKind::pooled) view.gate_expand = pick_rows(source.gate_expand, g.gate_width, outputs);
    std::vector<float>& w_out = arrays.emplace_back(static_cast<size_t>(g.channels) * g.hidden);
    for (int c = 0; c < g.channels; ++c) {
      for (int i = 0; i < g.hidden; ++i)
        w_out[int64_t{c} * g.hidden + i] = source.w_out[int64_t{c} * g.hidden + order[i]];
    }
    view.w_out = w_out.data();
  }

  std::vector<int32_t> order;
  FoldedBlockView view;

 private:
  // The first `before` rows, and then one for each hidden channel in order.
  const float* pick_rows(const float* rows, int length, int before = 0) {
    std::vector<float>& picked = arrays.emplace_back(rows, rows + int64_t{before} * length);
    for (int32_t channel : order) {
      const float* row = rows + int64_t{before + channel} * length;
      picked.insert(picked.end(), row, row + length);
    }
    return picked.data();
  }

  std::deque<std::vector<float>> arrays;
};

// Element index of gate `gate` (outputs first, then hidden) in the padded vector of scores.
int padded_gate(const PackedHeader& h, int gate) {
  const int outputs = h.geometry.channels * h.geometry.gates_out;
  return gate < outputs ? gate : h.channels_padded * h.geometry.gates_out + gate - outputs;
}

void fill_gate(char* base, const PackedHeader& h, const PackedBlock& b, const FoldedBlockView& source) {
  const Geometry& g = h.geometry;
  Writer writer(kGatePrecision, base);
  // A padded gate can never be kept, whatever the shift.
  std::vector<float> scores(h.gates_padded, -INFINITY);
  for (int i = 0; i < h.gates; ++i) scores[padded_gate(h, i)] = source.gate_expand_bias[i];
  if (g.gate_kind != GateKind::pooled) {
    std::copy(scores.begin(), scores.end(), writer.floats(b.gate_expand.bias));
    return;
  }
  fill_rows(writer, b.gate_reduce.weights, row_bytes(kGatePrecision, h.channels_padded), source.gate_reduce, g.channels,
            fill_outputs(writer, b.gate_reduce, source.gate_reduce, source.gate_reduce_bias));
  std::vector<float> expand(static_cast<size_t>(h.gates_padded) * g.gate_width);
  for (int i = 0; i < h.gates; ++i) {
    std::copy_n(source.gate_expand + int64_t{i} * g.gate_width, g.gate_width,
                expand.begin() + int64_t{padded_gate(h, i)} * g.gate_width);
  }
  fill_panel(writer, b.gate_expand, expand.data(), scores.data());
}

void fill_block(Writer& writer, const PackedHeader& h, const PackedBlock& b, const FoldedBlockView& source) {
  const Geometry& g = h.geometry;
  std::copy_n(source.b_dw, g.hidden, writer.floats(b.b_dw));
  for (int i = 0; i < g.hidden; ++i) {
    for (int k = 0; k < g.taps; ++k) {
      writer.floats(b.w_dw)[int64_t{k} * h.hidden_padded + i] = source.w_dw[int64_t{i} * g.taps + k];
    }
  }
  fill_panel(writer, b.w_in, source.w_in, source.b_in);
  const auto fill = has_out_panel(h) ? fill_panel : fill_outputs;
  const std::vector<float> scales = fill(writer, b.w_out, source.w_out, source.b_out);
  if (g.gates_out) fill_rows(writer, b.out_rows, h.out_row_stride, source.w_out, g.hidden, scales);
  if (!g.gates_hidden) return;
  fill_rows(writer, b.hidden_rows, h.hidden_row_stride, source.w_in, g.channels,
            scales_of(h.precision, source.w_in, g.channels, g.hidden));
  std::vector<float> column(g.channels);
  for (int i = 0; i < g.hidden; ++i) {
    for (int c = 0; c < g.channels; ++c) column[c] = source.w_out[int64_t{c} * g.hidden + i];
    writer.row(b.hidden_columns + i * h.hidden_column_stride, column, scales);
  }
}

// The square root of the periodic Hann window; exp(-2 pi i p k / n) for the passes of the complex transform of half the
// size, in the order in which kernels/stream_transform.cpp reads them; exp(-2 pi i k / n_fft) for its real part.
void fill_transform(Writer& writer, const PackedHeader& h) {
  const int size = h.geometry.n_fft, half = size / 2;
  const double turn = 2 * 3.14159265358979323846;
  for (int i = 0; i < size; ++i) {
    writer.floats(h.window)[i] = static_cast<float>(std::sqrt(0.5 - 0.5 * std::cos(turn * i / size)));
  }
  float* out = writer.floats(h.twiddles);
  for (int n = half; n >= 4; n /= 4) {
    const int quarter = n / 4;
    for (int k = 1; k <= 3; ++k) {
      for (int p = 0; p < quarter; ++p) {
        *out = static_cast<float>(std::cos(turn * p * k / n));
        out[quarter] = static_cast<float>(-std::sin(turn * p * k / n));
        ++out;
      }
      out += quarter;
    }
  }
  float* real = writer.floats(h.real_twiddles);
  for (int k = 0; k <= half / 2; ++k) {
    real[k] = static_cast<float>(std::cos(turn * k / size));
    real[half / 2 + kPad + k] = static_cast<float>(-std::sin(turn * k / size));
  }
}

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    throw std::invalid_argument(std::string("model: ") + name + " must be between " + std::to_string(least) + " and " +
                                std::to_string(most) + " (got " + std::to_string(value) + ")");
  }
}

}  // namespace

Precision precision_named(const std::string& name) {
  for (size_t i = 0; i < std::size(kPrecisionNames); ++i) {
    if (name == kPrecisionNames[i]) return static_cast<Precision>(i);
  }
  throw std::invalid_argument("precision must be float32, float16, bfloat16, int8 or int24 (got " + name + ")");
}

const char* precision_name(Precision precision) { return kPrecisionNames[static_cast<int>(precision)]; }

void check_geometry(const Geometry& g) {
  check_range("bins", g.bins, 1, 1 << 16);
  check_range("channels", g.channels, 1, 1 << 13);
  check_range("hidden", g.hidden, 1, 1 << 14);
  check_range("kernel_size", g.taps, 1, 64);
  check_range("blocks", g.blocks, 0, 1 << 10);
  check_range("n_fft", g.n_fft, 2, 1 << 17);
  check_range("hop", g.hop, 1, g.n_fft / 2);
  check_range("n_fft % hop", g.n_fft % g.hop, 0, 0);
  check_range("bins - n_fft / 2", g.bins - g.n_fft / 2, 1, 1);
  check_range("sample_rate", g.sample_rate, 1, 1 << 24);
  if (!(g.compression > 0.0f && g.compression <= 4.0f)) {
    throw std::invalid_argument("model: compression must be above 0 and at most 4");
  }
  if (g.gate_kind == GateKind::pooled) {
    check_range("gate_hidden", g.gate_width, 1, 1 << 10);
    check_range("gate_window", g.window, 1, 1 << 14);
  }
}

int64_t packed_bytes(const FoldedView& folded, Precision precision, int64_t row_alignment) {
  return plan_model(folded, precision, row_alignment).header.bytes;
}

void pack_model(const FoldedView& folded, Precision precision, void* packed, int64_t row_alignment) {
  const Plan plan = plan_model(folded, precision, row_alignment);
  std::memset(packed, 0, plan.header.bytes);
  char* base = static_cast<char*>(packed);
  Writer writer(precision, base);
  const Geometry& g = plan.header.geometry;
  fill_panel(writer, plan.header.front, folded.front_weight, folded.front_bias);
  for (size_t i = 0; i < plan.blocks.size(); ++i) {
    const PackedBlock& block = plan.blocks[i];
    std::optional<Ordered> ordered;
    if (g.gates_hidden) {
      ordered.emplace(g, folded.blocks[i]);
      std::copy(ordered->order.begin(), ordered->order.end(), at<int32_t>(base, block.hidden_order));
    }
    const FoldedBlockView& source = ordered ? ordered->view : folded.blocks[i];
    if (g.gate_kind != GateKind::none) fill_gate(base, plan.header, block, source);
    fill_block(writer, plan.header, block, source);
  }
  fill_panel(writer, plan.header.back, folded.back_weight, folded.back_bias);
  if (plan.header.has_transform) fill_transform(writer, plan.header);
  std::memcpy(base, &plan.header, sizeof(PackedHeader));
  std::memcpy(base + sizeof(PackedHeader), plan.blocks.data(), sizeof(PackedBlock) * plan.blocks.size());
  auto* header = reinterpret_cast<PackedHeader*>(base);
  header->checksum = checksum_of(*header, packed_blocks(*header));
}

const PackedHeader& checked_model(const void* packed, int64_t bytes) {
  const auto* header = static_cast<const PackedHeader*>(packed);
  if (reinterpret_cast<uintptr_t>(packed) % kLine != 0) {
    throw std::invalid_argument("packed must be 64-byte aligned (a slice or a view is not)");
  }
  const bool has_header = bytes >= static_cast<int64_t>(sizeof(PackedHeader)) &&
                          std::memcmp(header->magic, kMagic, sizeof(kMagic)) == 0 && header->bytes == bytes;
  const int64_t table = has_header ? header->geometry.blocks * static_cast<int64_t>(sizeof(PackedBlock)) : 0;
  if (!has_header || header->geometry.blocks < 0 || table > bytes - static_cast<int64_t>(sizeof(PackedHeader)) ||
      checksum_of(*header, packed_blocks(*header)) != header->checksum) {
    throw std::invalid_argument("packed must be a packed model, whole and unchanged (got " + std::to_string(bytes) +
                                " other bytes)");
  }
  return *header;
}

}  // namespace dyncp
