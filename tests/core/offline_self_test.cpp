// Self-test of the offline core, without Python and torch: random calls of its ops on every instruction set of this
// machine, against the same formulas written as plain loops in double precision.  The weights of channels that are
// closed throughout are NaN.  Prints one line per check and returns whether one failed.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/channel_gate.h"
#include "core/gated_conv.h"
#include "core/isa.h"
#include "core/pointwise.h"
#include "self_test.h"

namespace {

using dyncp::Activation;
using dyncp::ChannelGate;
using dyncp::DType;
using dyncp::Gate;
using dyncp::GatedConv;
using dyncp::GateForm;
using dyncp::GateWords;
using dyncp::ParallelBody;
using dyncp::ParallelFor;
using dyncp::Pointwise;
using dyncp::Pooling;

constexpr int64_t kBatch = 2;
constexpr int64_t kFrames[] = {1, 15, 64, 130};
constexpr double kUntouched = 77;  // fills what a call must not write
constexpr DType kTypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16};

int pick(int count) { return static_cast<int>(generator() % static_cast<unsigned>(count)); }

std::string name_of(DType dtype) {
  const char* names[] = {"float32", "float64", "float16", "bfloat16"};
  return names[static_cast<int>(dtype)];
}

// Of a value relative to itself, or to one where it is smaller; 16 bits leave the rounding of the result only.
double tolerance(DType dtype) {
  const double values[] = {5e-6, 1e-14, 0x1.02p-11, 0x1.02p-8};
  return values[static_cast<int>(dtype)];
}

uint16_t half_of(double v) {
  if (std::isnan(v)) return 0x7e00;
  int exponent;
  std::frexp(v, &exponent);
  exponent = v == 0 || exponent < -13 ? -14 : exponent - 1;
  const int magnitude =
      (exponent + 14) * 1024 + static_cast<int>(std::nearbyint(std::ldexp(std::fabs(v), 10 - exponent)));
  return static_cast<uint16_t>(magnitude | (std::signbit(v) ? 0x8000 : 0));
}

double value_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return mantissa == 0 ? INFINITY : NAN;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

uint16_t bfloat16_of(double v) {
  const float rounded = static_cast<float>(v);
  uint32_t bits;
  std::memcpy(&bits, &rounded, 4);
  return static_cast<uint16_t>(std::isnan(v) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

double value_of_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Values of any dtype, read and written as doubles.
struct Array {
  DType dtype;
  int64_t width, count;
  std::vector<uint8_t> bytes;

  Array(DType type, int64_t size, double fill)
      : dtype(type),
        width(type == DType::float64   ? 8
              : type == DType::float32 ? 4
                                       : 2),
        count(size) {
    bytes.resize(static_cast<size_t>(count * width));
    for (int64_t i = 0; i < count; ++i) set(i, fill);
  }

  static Array random(DType type, int64_t size, double deviation) {
    Array array(type, size, 0);
    const std::vector<float> values = normal(static_cast<size_t>(size), deviation);
    for (int64_t i = 0; i < size; ++i) array.set(i, values[static_cast<size_t>(i)]);
    return array;
  }

  double get(int64_t i) const {
    if (dtype == DType::float64) return read<double>(i);
    if (dtype == DType::float32) return read<float>(i);
    return dtype == DType::float16 ? value_of_half(read<uint16_t>(i)) : value_of_bfloat16(read<uint16_t>(i));
  }
  void set(int64_t i, double v) {
    if (dtype == DType::float64) return write(i, v);
    if (dtype == DType::float32) return write(i, static_cast<float>(v));
    write(i, dtype == DType::float16 ? half_of(v) : bfloat16_of(v));
  }

  const void* data() const { return bytes.data(); }

 private:
  template <class T>
  T read(int64_t i) const {
    T value;
    std::memcpy(&value, bytes.data() + i * width, sizeof(T));
    return value;
  }
  template <class T>
  void write(int64_t i, T value) {
    std::memcpy(bytes.data() + i * width, &value, sizeof(T));
  }
};

enum class Layout { contiguous, padded, tiles };

// Where the values of (batch, channels, frames) lie.
struct Rows {
  Layout layout;
  int64_t channels, frames, tile, batch_stride, channel_stride, tile_stride = 0;

  Rows(Layout wanted, int64_t rows, int64_t length)
      : layout(wanted), channels(rows), frames(length), tile(dyncp::pointwise_tile()) {
    channel_stride = layout == Layout::tiles ? tile : layout == Layout::padded ? frames + 5 : frames;
    batch_stride = channels * channel_stride;
    if (layout == Layout::tiles) {
      tile_stride = batch_stride + 7;
      batch_stride = (frames + tile - 1) / tile * tile_stride;
    }
  }

  int64_t size() const { return kBatch * batch_stride; }
  int64_t at(int64_t item, int64_t channel, int64_t t) const {
    const int64_t place = layout == Layout::tiles ? t / tile * tile_stride + t % tile : t;
    return item * batch_stride + channel * channel_stride + place;
  }

  // x in this layout; whoever reads what lies between its rows gets NaN.
  Array laid(const Array& x) const {
    Array y(x.dtype, size(), NAN);
    for (int64_t i = 0; i < x.count; ++i) {
      y.set(at(i / frames / channels, i / frames % channels, i % frames), x.get(i));
    }
    return y;
  }

  template <class Call>
  void set_x(Call& call, const Array& x) const {
    call.x = x.data();
    call.x_batch_stride = batch_stride;
    call.x_channel_stride = channel_stride;
    call.x_tile_stride = tile_stride;
  }
  template <class Call>
  void set_y(Call& call) const {
    if (layout == Layout::contiguous) return;
    call.y_batch_stride = batch_stride;
    call.y_channel_stride = channel_stride;
    call.y_tile_stride = tile_stride;
  }

  double deviation(const Array& y, const Row& wanted) const {
    double worst = 0;
    Array rest = y;
    for (size_t i = 0; i < wanted.size(); ++i) {
      const int64_t n = static_cast<int64_t>(i), place = at(n / frames / channels, n / frames % channels, n % frames);
      note(worst, std::fabs(y.get(place) - wanted[i]) / std::max(1.0, std::fabs(wanted[i])));
      rest.set(place, kUntouched);
    }
    // A tile has room behind its last frame, which may be written.
    for (int64_t row = 0; layout == Layout::tiles && row < kBatch * channels; ++row) {
      for (int64_t t = frames; t % tile != 0; ++t) rest.set(at(row / channels, row % channels, t), kUntouched);
    }
    for (int64_t i = 0; i < rest.count; ++i) {
      if (rest.get(i) != kUntouched) note(worst, INFINITY);
    }
    return worst;
  }
};

void at_once(int64_t count, int64_t, ParallelBody body, void* context) { body(context, 0, count); }

void one_by_one(int64_t count, int64_t, ParallelBody body, void* context) {
  for (int64_t i = count; i-- > 0;) body(context, i, i + 1);
}

// Runs an op, given as op(call, y, parallel_for), at once and in pieces.
template <class Call, class Op>
void check_output(const Call& call, const Array& x, const Row& wanted, Layout from, Layout to, const char* strategy,
                  Op op, const std::string& what) {
  const Rows x_rows(from, call.channels, call.frames), y_rows(to, call.out_channels, call.frames);
  const Array x_laid = x_rows.laid(x);
  Call laid = call;
  x_rows.set_x(laid, x_laid);
  y_rows.set_y(laid);
  dyncp::set_offline_strategy(strategy);
  Array y(call.dtype, y_rows.size(), kUntouched), pieces = y;
  op(laid, y.bytes.data(), at_once);
  op(laid, pieces.bytes.data(), one_by_one);
  const double worst = y_rows.deviation(y, wanted);
  expect(worst <= tolerance(call.dtype), what, worst);
  if (pieces.bytes != y.bytes) expect(false, what + " in pieces", y_rows.deviation(pieces, wanted));
}

// Decisions of one site: some channels are closed throughout, some open throughout, the others change.
struct Gates {
  bool exist, is_constant;
  GateForm form;
  int64_t channels, frames;  // of the decisions
  Row values;                // (batch, channels, frames), 0 where closed
  std::vector<uint8_t> bytes;
  std::vector<uint64_t> words;
  Array array;
  static constexpr int64_t kFirst = 3;  // channels in front of these in the words

  Gates(bool is_there, GateForm which, bool constant, int64_t count, int64_t length, DType dtype)
      : exist(is_there),
        is_constant(constant),
        form(which),
        channels(count),
        frames(constant ? 1 : length),
        array(dtype, kBatch * count * frames, 0) {
    values.assign(static_cast<size_t>(array.count), 1.0);
    if (!exist) return;
    // All channels close together: never, at single frames, or during a whole tile of either size.
    const int silence = pick(4);
    const int64_t silent_from = silence == 2 ? 48 : 64, silent_to = 2 * silent_from;
    const GateWords layout = word_layout();
    words.assign(static_cast<size_t>(kBatch * layout.of_item()), 0);
    for (int64_t c = 0; c < channels; ++c) {
      const double densities[] = {0, 1, 0.1, 0.5, 0.9};
      const double density = densities[pick(5)];
      for (int64_t item = 0; item < kBatch; ++item) {
        for (int64_t t = 0; t < frames; ++t) {
          const bool is_long = item == 1 && (is_constant || (t >= silent_from && t < silent_to));
          const bool is_silent = silence == 1 ? t % 16 == 5 : silence > 1 && is_long;
          const bool open = pick(1000) < 1000 * density && !is_silent;
          const int64_t at = (item * channels + c) * frames + t;
          array.set(at, open ? (pick(2) == 0 ? -1 : 1) * (0.5 + pick(100) * 0.01) : 0);
          values[static_cast<size_t>(at)] = form == GateForm::values ? array.get(at) : open;
          words[static_cast<size_t>(item * layout.of_item() + t / GateWords::kFrames * layout.channels + kFirst + c)] |=
              uint64_t{open} << t % GateWords::kFrames;
        }
      }
    }
    for (double v : values) bytes.push_back(v != 0);
  }

  GateWords word_layout() const { return {kFirst + channels, frames}; }

  double at(int64_t item, int64_t c, int64_t t) const {
    return values[static_cast<size_t>((item * channels + c) * frames + (is_constant ? 0 : t))];
  }
  bool is_never_open(int64_t c) const {
    for (int64_t i = 0; i < kBatch * frames; ++i) {
      if (at(i / frames, c, i % frames) != 0) return false;
    }
    return true;
  }

  Gate gate() const {
    if (!exist) return {};
    if (form == GateForm::bits) return word_layout().gate(words.data(), kFirst);
    const void* data = form == GateForm::bools ? static_cast<const void*>(bytes.data()) : array.data();
    return {data, form, channels * frames, frames, is_constant ? 0 : 1};
  }
};

double rectified(double v, const Array* slope) { return v < 0 ? (slope == nullptr ? 0 : slope->get(0)) * v : v; }

struct Block {
  GatedConv call;
  Gates hidden, out;
  Array x, w_in, w_dw, w_out, b_in, b_dw, b_out, slope_in, slope_dw;

  Block(const GatedConv& shape, int site, GateForm form, bool is_constant)
      : call(shape),
        hidden((site & 2) != 0, form, is_constant, shape.hidden, shape.frames, shape.dtype),
        out((site & 1) != 0, form, is_constant, shape.out_channels, shape.frames, shape.dtype),
        x(Array::random(shape.dtype, kBatch * shape.channels * shape.frames, 1)),
        w_in(Array::random(shape.dtype, shape.hidden * (shape.channels + 2), 1 / std::sqrt(shape.channels))),
        w_dw(Array::random(shape.dtype, shape.hidden * shape.taps, 0.5)),
        w_out(Array::random(shape.dtype, shape.out_channels * shape.hidden, 1 / std::sqrt(shape.hidden))),
        b_in(Array::random(shape.dtype, shape.hidden, 0.3)),
        b_dw(Array::random(shape.dtype, shape.hidden, 0.3)),
        b_out(Array::random(shape.dtype, shape.out_channels, 0.3)),
        slope_in(shape.dtype, 1, 0),
        slope_dw(shape.dtype, 1, 0) {
    call.hidden_gate = hidden.gate();
    call.out_gate = out.gate();
    const bool is_transposed = pick(2) == 0, has_biases = pick(4) != 0;
    call.w_in_row_stride = call.channels + 2;
    call.w_out_row_stride = is_transposed ? 1 : call.hidden;
    call.w_out_column_stride = is_transposed ? call.out_channels : 1;
    if (shape.channels != shape.hidden) call.w_in = w_in.data();
    call.w_dw = w_dw.data();
    call.w_out = w_out.data();
    if (has_biases) {
      call.b_in = b_in.data();
      call.b_dw = b_dw.data();
      call.b_out = b_out.data();
    }
    // The slopes of ReLU are zero and not given.
    const std::pair<double, double> slopes[] = {{0, 0}, {0.25, 0.125}, {1, 0.75}, {-0.5, 1.5}, {0.25, 0}, {0, 0.5}};
    const auto [in, dw] = slopes[pick(6)];
    slope_in.set(0, in);
    slope_dw.set(0, dw);
    if (in != 0) call.slope_in = slope_in.data();
    if (dw != 0) call.slope_dw = slope_dw.data();
    poison();
  }
  Block(const Block&) = delete;

  void poison() {
    for (int64_t h = 0; h < call.hidden; ++h) {
      for (int64_t i = 0; i < 2; ++i) w_in.set(h * call.w_in_row_stride + call.channels + i, NAN);
      if (!hidden.is_never_open(h)) continue;
      for (int64_t c = 0; c < call.channels; ++c) w_in.set(h * call.w_in_row_stride + c, NAN);
      for (int64_t k = 0; k < call.taps; ++k) w_dw.set(h * call.taps + k, NAN);
      for (int64_t o = 0; o < call.out_channels; ++o) w_out.set(place_out(o, h), NAN);
      b_in.set(h, NAN);
      b_dw.set(h, NAN);
    }
    for (int64_t o = 0; o < call.out_channels; ++o) {
      if (!out.is_never_open(o)) continue;
      for (int64_t h = 0; h < call.hidden; ++h) w_out.set(place_out(o, h), NAN);
      b_out.set(o, NAN);
    }
  }

  int64_t place_out(int64_t o, int64_t h) const { return o * call.w_out_row_stride + h * call.w_out_column_stride; }

  Row plain() const {
    const int64_t frames = call.frames;
    Row y;
    for (int64_t item = 0; item < kBatch; ++item) {
      const auto x_at = [&](int64_t c, int64_t t) { return x.get((item * call.channels + c) * frames + t); };
      Row u(static_cast<size_t>(call.hidden * frames), 0.0), z = u;
      std::vector<bool> branch(static_cast<size_t>(frames), !hidden.exist);
      const auto at = [&](int64_t h, int64_t t) { return static_cast<size_t>(h * frames + t); };
      for (int64_t h = 0; h < call.hidden; ++h) {
        for (int64_t t = 0; t < frames; ++t) {
          const double gate = hidden.at(item, h, t);
          if (gate == 0) continue;
          branch[static_cast<size_t>(t)] = true;
          double sum = call.b_in == nullptr ? 0 : b_in.get(h);
          for (int64_t c = 0; c < call.channels; ++c) sum += w_in.get(h * call.w_in_row_stride + c) * x_at(c, t);
          u[at(h, t)] = gate * (call.w_in == nullptr ? x_at(h, t) : rectified(sum, slope(call.slope_in, slope_in)));
        }
        for (int64_t t = 0; t < frames; ++t) {
          const double gate = hidden.at(item, h, t);
          if (gate == 0) continue;
          double sum = call.b_dw == nullptr ? 0 : b_dw.get(h);
          for (int64_t k = 0; k < call.taps; ++k) {
            const int64_t from = t - call.left() + k * call.dilation;
            if (from >= 0 && from < frames) sum += w_dw.get(h * call.taps + k) * u[at(h, from)];
          }
          z[at(h, t)] = gate * rectified(sum, slope(call.slope_dw, slope_dw));
        }
      }
      for (int64_t o = 0; o < call.out_channels; ++o) {
        for (int64_t t = 0; t < frames; ++t) {
          double sum = call.b_out == nullptr ? 0 : b_out.get(o);
          for (int64_t h = 0; h < call.hidden; ++h) {
            if (hidden.at(item, h, t) != 0) sum += w_out.get(place_out(o, h)) * z[at(h, t)];
          }
          const double gate = out.at(item, o, t);
          const double added = gate != 0 && branch[static_cast<size_t>(t)] ? gate * sum : 0;
          y.push_back(added + (call.residual ? x_at(o, t) : 0));
        }
      }
    }
    return y;
  }

  static const Array* slope(const void* given, const Array& value) { return given == nullptr ? nullptr : &value; }
};

void check_block(const GatedConv& shape, int site, GateForm form, bool is_constant) {
  const Block block(shape, site, form, is_constant);
  const Row wanted = block.plain();
  const char* forms[] = {"bytes", "bits", "values"};
  std::string what = " block " + std::to_string(shape.channels) + "/" + std::to_string(shape.hidden) + "/" +
                     std::to_string(shape.out_channels) + " taps " + std::to_string(shape.taps) + " by " +
                     std::to_string(shape.dilation) + (shape.causal ? "" : " centred") + ", " +
                     std::to_string(shape.frames) + " frames, " + name_of(shape.dtype);
  if (site != 0) {
    what += ", site " + std::to_string(site) + " " + forms[static_cast<int>(form)] + (is_constant ? " constant" : "");
  }
  // Blocks that look ahead do not read tiles.
  const Layout from = static_cast<Layout>(pick(shape.causal ? 3 : 2)), to = static_cast<Layout>(pick(3));
  for (dyncp::Isa isa : dyncp::supported_isas()) {
    dyncp::set_active_isa(dyncp::isa_name(isa));
    for (const char* strategy : {"automatic", "tile", "frames"}) {
      check_output(block.call, block.x, wanted, from, to, strategy, dyncp::gated_conv,
                   dyncp::isa_name(isa) + what + ", " + strategy);
    }
  }
}

void check_blocks() {
  const struct {
    int64_t channels, hidden, out_channels, taps, dilation;
  } shapes[] = {{16, 33, 16, 3, 1}, {19, 37, 19, 3, 4}, {7, 50, 13, 2, 3},
                {40, 9, 40, 5, 2},  {21, 21, 8, 3, 30}, {3, 70, 21, 1, 1}};
  GatedConv call;
  call.batch = kBatch;
  for (const auto& shape : shapes) {
    call.channels = shape.channels;
    call.hidden = shape.hidden;
    call.out_channels = shape.out_channels;
    call.residual = shape.channels == shape.out_channels;
    call.taps = shape.taps;
    call.dilation = shape.dilation;
    for (int64_t frames : kFrames) {
      call.frames = frames;
      for (int site = 0; site < 4; ++site) {
        for (GateForm form : {GateForm::bools, GateForm::bits, GateForm::values}) {
          for (bool is_constant : {false, true}) {
            call.dtype = kTypes[pick(4)];
            call.causal = call.reach() % 2 == 1 || pick(2) == 0;
            check_block(call, site, form, is_constant);
            if (site == 0) break;
          }
        }
      }
    }
  }
}

void check_pointwise(int64_t channels, int64_t out_channels, int64_t frames, Activation activation, DType dtype) {
  Pointwise call;
  call.dtype = dtype;
  call.batch = kBatch;
  call.channels = channels;
  call.out_channels = out_channels;
  call.frames = frames;
  call.activation = activation;
  call.w_row_stride = channels + pick(3);
  const Array x = Array::random(dtype, kBatch * channels * frames, 1);
  const Array w = Array::random(dtype, out_channels * call.w_row_stride, 1 / std::sqrt(channels));
  const Array b = Array::random(dtype, out_channels, 0.3);
  call.w = w.data();
  if (pick(4) != 0) call.b = b.data();
  Row wanted;
  for (int64_t i = 0; i < kBatch * out_channels * frames; ++i) {
    const int64_t item = i / frames / out_channels, o = i / frames % out_channels, t = i % frames;
    double sum = call.b == nullptr ? 0 : b.get(o);
    for (int64_t c = 0; c < channels; ++c) {
      sum += w.get(o * call.w_row_stride + c) * x.get((item * channels + c) * frames + t);
    }
    if (activation == Activation::relu) sum = std::max(sum, 0.0);
    wanted.push_back(activation == Activation::sigmoid ? 1 / (1 + std::exp(-sum)) : sum);
  }
  const char* names[] = {"", " relu", " sigmoid"};
  const std::string what = " pointwise " + std::to_string(channels) + "/" + std::to_string(out_channels) +
                           names[static_cast<int>(activation)] + ", " + std::to_string(frames) + " frames, " +
                           name_of(dtype);
  const Layout from = static_cast<Layout>(pick(3)), to = static_cast<Layout>(pick(3));
  for (dyncp::Isa isa : dyncp::supported_isas()) {
    dyncp::set_active_isa(dyncp::isa_name(isa));
    check_output(call, x, wanted, from, to, "automatic", dyncp::pointwise, dyncp::isa_name(isa) + what);
  }
}

Row pooled(const Row& x, Pooling pooling, int64_t window) {
  const int64_t frames = static_cast<int64_t>(x.size());
  Row y = x;
  for (int64_t t = 0; t < frames; ++t) {
    if (pooling == Pooling::exponential) {
      if (t > 0) y[t] = y[t - 1] + 2.0 / static_cast<double>(window + 1) * (x[t] - y[t - 1]);
      continue;
    }
    int64_t begin = 0, end = t + 1;
    if (pooling == Pooling::window) begin = t + 1 - window;
    if (pooling == Pooling::centred) begin = t - window / 2, end = begin + window;
    if (pooling == Pooling::global) end = frames;
    begin = std::max<int64_t>(begin, 0);
    end = std::min(end, frames);
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += x[i];
    y[t] = sum / static_cast<double>(end - begin);
  }
  return y;
}

void check_gate(int64_t channels, int64_t width, int64_t gates, int64_t frames, Pooling pooling, DType dtype) {
  ChannelGate call;
  call.dtype = dtype;
  call.batch = kBatch;
  call.channels = channels;
  call.width = width;
  call.gates = gates;
  call.frames = frames;
  call.pooling = pooling;
  const int64_t windows[] = {1, 4, 5, 200};
  call.window = windows[pick(4)];
  call.shift = 0.125;
  const Array x = Array::random(dtype, kBatch * channels * frames, 1);
  const Array w_reduce = Array::random(dtype, width * channels, 0.3), b_reduce = Array::random(dtype, width, 0.3);
  const Array w_expand = Array::random(dtype, gates * width, 1), b_expand = Array::random(dtype, gates, 0.3);
  call.w_reduce = w_reduce.data();
  call.w_expand = w_expand.data();
  if (pick(4) != 0) call.b_reduce = b_reduce.data();
  if (pick(4) != 0) call.b_expand = b_expand.data();

  Row scores;
  for (int64_t item = 0; item < kBatch; ++item) {
    std::vector<Row> rows;
    for (int64_t c = 0; c < channels; ++c) {
      Row row;
      for (int64_t t = 0; t < frames; ++t) row.push_back(x.get((item * channels + c) * frames + t));
      rows.push_back(pooled(row, pooling, call.window));
    }
    std::vector<Row> reduced;
    for (int64_t k = 0; k < width; ++k) {
      Row row(static_cast<size_t>(frames), call.b_reduce == nullptr ? 0 : b_reduce.get(k));
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t t = 0; t < frames; ++t) row[t] += w_reduce.get(k * channels + c) * rows[c][t];
      }
      reduced.push_back(row);
    }
    for (int64_t g = 0; g < gates; ++g) {
      for (int64_t t = 0; t < call.gate_frames(); ++t) {
        double score = call.shift + (call.b_expand == nullptr ? 0 : b_expand.get(g));
        for (int64_t k = 0; k < width; ++k) score += w_expand.get(g * width + k) * std::max(reduced[k][t], 0.0);
        scores.push_back(score);
      }
    }
  }

  const char* names[] = {"average", "exponential", "window", "centred", "global"};
  const std::string what = " gate " + std::to_string(channels) + "/" + std::to_string(width) + "/" +
                           std::to_string(gates) + " " + names[static_cast<int>(pooling)] + " of " +
                           std::to_string(call.window) + ", " + std::to_string(frames) + " frames, " + name_of(dtype);
  const double undecided = dtype == DType::float64 ? 1e-12 : 1e-5;  // scores so close to zero may go either way
  const GateWords layout{gates, call.gate_frames()};
  const Layout from = static_cast<Layout>(pick(3));
  for (dyncp::Isa isa : dyncp::supported_isas()) {
    dyncp::set_active_isa(dyncp::isa_name(isa));
    const Rows x_rows(from, channels, frames);
    const Array x_laid = x_rows.laid(x);
    x_rows.set_x(call, x_laid);
    std::vector<uint8_t> bytes(scores.size(), 2);
    std::vector<uint64_t> words(static_cast<size_t>(kBatch * layout.of_item()), ~uint64_t{0}), pieces = words;
    dyncp::channel_gate(call, bytes.data(), at_once);
    dyncp::channel_gate(call, words.data(), at_once);
    dyncp::channel_gate(call, pieces.data(), one_by_one);
    std::vector<uint64_t> packed(words.size(), 0);
    int wrong = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      wrong += bytes[i] > 1 || (bytes[i] != (scores[i] > 0) && std::fabs(scores[i]) > undecided);
      const int64_t n = static_cast<int64_t>(i), t = n % layout.frames, row = n / layout.frames;
      packed[static_cast<size_t>(row / gates * layout.of_item() + t / 64 * gates + row % gates)] |= uint64_t{bytes[i]}
                                                                                                    << t % 64;
    }
    expect(wrong == 0, dyncp::isa_name(isa) + what, wrong);
    if (words != packed) expect(false, dyncp::isa_name(isa) + what + " as words", NAN);
    if (words != pieces) expect(false, dyncp::isa_name(isa) + what + " in pieces", NAN);
  }
}

}  // namespace

int main() {
  check_blocks();
  for (int64_t frames : kFrames) {
    for (DType dtype : kTypes) {
      for (Activation activation : {Activation::none, Activation::relu, Activation::sigmoid}) {
        check_pointwise(33, 19, frames, activation, dtype);
        check_pointwise(5, 70, frames, activation, dtype);
      }
      for (Pooling pooling :
           {Pooling::average, Pooling::exponential, Pooling::window, Pooling::centred, Pooling::global}) {
        check_gate(19, 8, 37, frames, pooling, dtype);
        check_gate(40, 5, 12, frames, pooling, dtype);
      }
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
