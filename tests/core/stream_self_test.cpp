// Self-test of the streaming core, without Python and torch: random networks through the engine on every instruction
// set of this machine, against the same network written as plain loops in double precision.  Prints one line per check
// and returns the number of failures.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <complex>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/aligned_memory.h"
#include "core/isa.h"
#include "core/stream_engine.h"
#include "core/stream_model.h"
#include "self_test.h"

namespace {

using dyncp::FoldedBlockView;
using dyncp::FoldedView;
using dyncp::GateKind;
using dyncp::Geometry;
using dyncp::PackedHeader;
using dyncp::Precision;
using dyncp::StreamPooling;

struct Block {
  int dilation;
  std::vector<float> w_in, b_in, w_dw, b_dw, w_out, b_out, slopes, reduce, reduce_bias, expand, expand_bias;
};

struct Network {
  Geometry g{};
  std::vector<float> front, front_bias, back, back_bias;
  std::vector<Block> blocks;

  FoldedView view() const {
    FoldedView v{};
    v.geometry = g;
    v.front_weight = front.data();
    v.front_bias = front_bias.data();
    v.back_weight = back.data();
    v.back_bias = back_bias.data();
    for (const Block& b : blocks) {
      FoldedBlockView f{};
      f.dilation = b.dilation;
      f.w_in = b.w_in.data();
      f.b_in = b.b_in.data();
      f.w_dw = b.w_dw.data();
      f.b_dw = b.b_dw.data();
      f.w_out = b.w_out.data();
      f.b_out = b.b_out.data();
      f.slope_in = g.has_prelu ? &b.slopes[0] : nullptr;
      f.slope_dw = g.has_prelu ? &b.slopes[1] : nullptr;
      f.gate_reduce = b.reduce.data();
      f.gate_reduce_bias = b.reduce_bias.data();
      f.gate_expand = b.expand.data();
      f.gate_expand_bias = b.expand_bias.data();
      v.blocks.push_back(f);
    }
    return v;
  }

  int gates() const { return g.channels * g.gates_out + g.hidden * g.gates_hidden; }
};

Network random_network(int channels, int hidden, int taps, const std::vector<int>& dilations, int site, GateKind kind,
                       StreamPooling pooling, bool has_prelu, int n_fft = 64) {
  Network n;
  Geometry& g = n.g;
  g.bins = n_fft / 2 + 1;
  g.channels = channels;
  g.hidden = hidden;
  g.taps = taps;
  g.blocks = static_cast<int>(dilations.size());
  g.has_prelu = has_prelu;
  g.gates_out = site & 1;
  g.gates_hidden = site >> 1;
  g.gate_kind = site ? kind : GateKind::none;
  g.gate_width = 5;
  g.pooling = pooling;
  g.window = 4;
  g.n_fft = n_fft;
  g.hop = n_fft / 4;
  g.sample_rate = 16000;
  g.compression = 0.3f;
  n.front = normal(size_t(channels) * g.bins, 1 / std::sqrt(g.bins));
  n.front_bias = normal(channels, 0.3);
  n.back = normal(size_t(channels) * g.bins, 1 / std::sqrt(channels));
  n.back_bias = normal(g.bins, 0.3);
  for (int dilation : dilations) {
    Block b;
    b.dilation = dilation;
    b.w_in = normal(size_t(hidden) * channels, 1 / std::sqrt(channels));
    b.b_in = normal(hidden, 0.3);
    b.w_dw = normal(size_t(hidden) * taps, 0.5);
    b.b_dw = normal(hidden, 0.3);
    b.w_out = normal(size_t(hidden) * channels, 1 / std::sqrt(hidden));
    b.b_out = normal(channels, 0.3);
    b.slopes = {0.2f, 0.1f};
    b.reduce = normal(size_t(5) * channels, 0.3);
    b.reduce_bias = normal(5, 0.3);
    b.expand = normal(size_t(n.gates()) * 5, 1);
    b.expand_bias = normal(n.gates(), 0.5, -0.6);
    n.blocks.push_back(b);
  }
  return n;
}

// The same network with weights that are bytes times a scale of their output, which int8 keeps as they are: what is
// left is how exactly it multiplies.
Network of_bytes(Network n) {
  const auto round_rows = [](std::vector<float>& weights, int outputs) {
    const size_t inputs = weights.size() / outputs;
    for (int o = 0; o < outputs; ++o) {
      float* row = weights.data() + o * inputs;
      float most = 0;
      for (size_t i = 0; i < inputs; ++i) most = std::max(most, std::fabs(row[i]));
      for (size_t i = 0; i < inputs; ++i) row[i] = std::round(row[i] / most * 127) / 127 * most;
    }
  };
  round_rows(n.front, n.g.channels);
  round_rows(n.back, n.g.bins);
  for (Block& b : n.blocks) {
    round_rows(b.w_in, n.g.hidden);
    round_rows(b.w_out, n.g.channels);
  }
  return n;
}

// The network as plain loops; its gates are taken from the engine where a score is too close to zero to be decided.
class Naive {
 public:
  explicit Naive(const Network& n) : n_(n), pools_(n.blocks.size()), history_(n.blocks.size()) {}

  Row step(const float* features, float shift, const uint8_t* engine_gates, int& disagreements) {
    const Geometry& g = n_.g;
    Row x = product(n_.front, n_.front_bias, Row(features, features + g.bins));
    for (double& v : x) v = std::max(v, 0.0);
    for (size_t i = 0; i < n_.blocks.size(); ++i) {
      const Block& b = n_.blocks[i];
      std::vector<bool> kept(n_.gates());
      if (g.gate_kind != GateKind::none) {
        Row scores(b.expand_bias.begin(), b.expand_bias.end());
        if (g.gate_kind == GateKind::pooled) {
          Row reduced = product(b.reduce, b.reduce_bias, pool(i, x));
          for (double& v : reduced) v = std::max(v, 0.0);
          scores = product(b.expand, b.expand_bias, reduced);
        }
        for (int k = 0; k < n_.gates(); ++k) {
          kept[k] = engine_gates[i * n_.gates() + k];
          disagreements += kept[k] != (scores[k] + shift > 0) && std::fabs(scores[k] + shift) > 1e-4;
        }
      }
      run_block(i, kept, x);
    }
    Row mask = product(n_.back, n_.back_bias, x);
    for (double& v : mask) v = 1 / (1 + std::exp(-v));
    ++frames_;
    return mask;
  }

 private:
  static Row product(const std::vector<float>& w, const std::vector<float>& bias, const Row& x) {
    Row out(bias.begin(), bias.end());
    for (size_t o = 0; o < out.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) out[o] += w[o * x.size() + i] * x[i];
    }
    return out;
  }

  Row pool(size_t block, const Row& x) {
    std::vector<Row>& seen = pools_[block];
    seen.push_back(x);
    Row pooled(x.size(), 0.0);
    if (n_.g.pooling == StreamPooling::exponential) {
      const double rate = 2.0 / (n_.g.window + 1);
      if (seen.size() > 1) {
        for (size_t c = 0; c < x.size(); ++c) seen[1][c] = seen[0][c] + rate * (x[c] - seen[0][c]);
        seen.erase(seen.begin());
      }
      return seen[0];
    }
    const size_t window = n_.g.pooling == StreamPooling::window ? n_.g.window : seen.size();
    const size_t count = std::min(window, seen.size());
    for (size_t t = seen.size() - count; t < seen.size(); ++t) {
      for (size_t c = 0; c < x.size(); ++c) pooled[c] += seen[t][c] / static_cast<double>(count);
    }
    return pooled;
  }

  void run_block(size_t index, const std::vector<bool>& kept, Row& x) {
    const Geometry& g = n_.g;
    const Block& b = n_.blocks[index];
    const int outs = g.channels * g.gates_out;
    const auto act = [&](double v, int which) { return v < 0 ? v * (g.has_prelu ? b.slopes[which] : 0.0) : v; };
    Row u(g.hidden, 0.0), z(g.hidden, 0.0);
    bool any = !g.gates_hidden;
    std::vector<Row>& history = history_[index];
    for (int h = 0; h < g.hidden; ++h) {
      if (g.gates_hidden && !kept[outs + h]) continue;
      any = true;
      double sum = b.b_in[h];
      for (int c = 0; c < g.channels; ++c) sum += b.w_in[size_t(h) * g.channels + c] * x[c];
      u[h] = act(sum, 0);
    }
    history.push_back(u);
    for (int h = 0; h < g.hidden; ++h) {
      if (g.gates_hidden && !kept[outs + h]) continue;
      double sum = b.b_dw[h];
      for (int k = 0; k < g.taps; ++k) {
        const int64_t t = int64_t(history.size()) - 1 - int64_t(g.taps - 1 - k) * b.dilation;
        if (t >= 0) sum += b.w_dw[size_t(h) * g.taps + k] * history[t][h];
      }
      z[h] = act(sum, 1);
    }
    for (int c = 0; c < g.channels && any; ++c) {
      if (g.gates_out && !kept[c]) continue;
      double sum = b.b_out[c];
      for (int h = 0; h < g.hidden; ++h) {
        if (z[h] != 0) sum += b.w_out[size_t(c) * g.hidden + h] * z[h];
      }
      x[c] += sum;
    }
  }

  const Network& n_;
  std::vector<std::vector<Row>> pools_, history_;
  int64_t frames_ = 0;
};

struct Engine {
  dyncp::Memory packed, state;
  const PackedHeader* model = nullptr;

  Engine(const Network& n, Precision precision, dyncp::Crossover crossover) {
    const FoldedView view = n.view();
    const int64_t bytes = dyncp::packed_bytes(view, precision);
    packed = dyncp::allocate(bytes);
    dyncp::pack_model(view, precision, packed.get());
    model = &dyncp::checked_model(packed.get(), bytes);
    state = dyncp::allocate(model->state_bytes);
    dyncp::initialise_state(*model, crossover, state.get());
  }
};

constexpr int kFrames = 12;

void check_network(const Network& n, Precision precision, float crossover, double tolerance, const std::string& what) {
  Engine engine(n, precision, {crossover, crossover});
  Naive naive(n);
  const int bins = n.g.bins, gates = n.g.blocks * n.gates();
  std::uniform_real_distribution<float> uniform(0, 2);
  double worst = 0;
  int disagreements = 0;
  std::vector<float> features(kFrames * bins), masks(kFrames * bins);
  for (float& f : features) f = uniform(generator);
  for (int t = 0; t < kFrames; ++t) {
    const float* own = features.data() + t * bins;
    float* mask = masks.data() + t * bins;
    std::vector<uint8_t> used(gates + 1);
    dyncp::step_frames(*engine.model, dyncp::one_stream({engine.state.get(), 0.1f}), own, 1, mask, used.data());
    const Row wanted = naive.step(own, 0.1f, used.data(), disagreements);
    for (int i = 0; i < bins; ++i) {
      note(worst, std::fabs(wanted[i] - mask[i]));
    }
  }
  expect(worst <= tolerance, what, worst);
  // Weights that are rounded move the block inputs, and with them scores, so there only masks are compared.
  if (tolerance < 1e-5) expect(disagreements == 0, what + ", gates", disagreements);
  dyncp::reset_state(*engine.model, engine.state.get());
  std::vector<float> together(masks.size());
  dyncp::step_frames(*engine.model, dyncp::one_stream({engine.state.get(), 0.1f}), features.data(), kFrames,
                     together.data(), nullptr);
  expect(together == masks, what + ", frames in one call", together.back() - masks.back());
}

// Features of any magnitude, at any address, through a network without biases, whose last weights bring the logits of
// all magnitudes to about one.
void check_magnitudes(Precision precision, double bound, const std::string& what) {
  Network n = of_bytes(random_network(19, 37, 2, {1, 3}, 0, GateKind::none, StreamPooling::average, true));
  std::fill(n.front_bias.begin(), n.front_bias.end(), 0.0f);
  std::fill(n.back_bias.begin(), n.back_bias.end(), 0.0f);
  for (Block& b : n.blocks) {
    for (std::vector<float>* bias : {&b.b_in, &b.b_dw, &b.b_out}) std::fill(bias->begin(), bias->end(), 0.0f);
  }
  const int bins = n.g.bins;
  const auto masks_of = [&](const Network& network, const std::vector<float>& features) {
    Engine engine(network, precision, {1, 1});
    std::vector<float> moved(features.size() + 1), masks(features.size());
    std::copy(features.begin(), features.end(), moved.begin() + 1);
    dyncp::step_frames(*engine.model, dyncp::one_stream({engine.state.get(), 0}), moved.data() + 1, 1, masks.data(),
                       nullptr);
    return masks;
  };
  for (float size : {0.0f, 1e-37f, 1e-28f, 1e-10f, 1e20f}) {
    Network scaled = n;
    if (size > 1e-30f) {
      for (float& w : scaled.back) w /= size;
    }
    std::vector<float> features(bins);
    for (int i = 0; i < bins; ++i) features[i] = size * static_cast<float>(i + 1) / static_cast<float>(bins);
    int disagreements = 0;
    const Row wanted = Naive(scaled).step(features.data(), 0, nullptr, disagreements);
    const std::vector<float> masks = masks_of(scaled, features);
    double worst = 0;
    for (int i = 0; i < bins; ++i) note(worst, std::fabs(wanted[i] - masks[i]));
    expect(worst <= bound, what + ", features of " + std::to_string(std::log10(size)) + " powers of ten", worst);
  }
  for (float value : {NAN, INFINITY}) {
    for (int place : {0, bins - 1}) {
      std::vector<float> features(bins, 1.0f);
      features[place] = value;
      int spared = 0;
      for (float m : masks_of(n, features)) spared += std::isnan(value) ? !std::isnan(m) : m > 0 && m < 1;
      expect(spared == 0, what + ", what is not finite reaches every mask from " + std::to_string(place), spared);
    }
  }
}

// Calls use(row, bytes) for every row of weights of pruned channels of a network with constant gates.
template <class Use>
int for_pruned_rows(const Network& n, const PackedHeader& model, char* packed, Use use) {
  int rows = 0;
  for (int i = 0; i < n.g.blocks; ++i) {
    const dyncp::PackedBlock& b = dyncp::packed_blocks(model)[i];
    const auto take = [&](int64_t row, int64_t bytes, int gate) {
      if (n.blocks[i].expand_bias[gate] > 0) return;
      use(packed + row, bytes);
      ++rows;
    };
    for (int c = 0; n.g.gates_out && c < n.g.channels; ++c) {
      take(b.out_rows + c * model.out_row_stride, model.out_row_stride, c);
    }
    for (int c = 0; n.g.gates_hidden && c < n.g.hidden; ++c) {
      const int gate = n.g.channels * n.g.gates_out + dyncp::at<int32_t>(packed, b.hidden_order)[c];
      take(b.hidden_rows + c * model.hidden_row_stride, model.hidden_row_stride, gate);
      take(b.hidden_columns + c * model.hidden_column_stride, model.hidden_column_stride, gate);
    }
  }
  return rows;
}

// Weights of pruned channels do not matter, be they NaN.
void check_poisoned(int site, Precision precision, const std::string& what) {
  const Network n = random_network(50, 70, 3, {1, 2}, site, GateKind::constant, StreamPooling::average, true);
  const std::vector<float> features(size_t(n.g.bins) * 4, 1.0f);
  std::vector<float> masks[2] = {features, features};
  Engine engine(n, precision, {1, 1});
  int poisoned = 0;
  for (std::vector<float>& m : masks) {
    dyncp::reset_state(*engine.model, engine.state.get());
    dyncp::step_frames(*engine.model, dyncp::one_stream({engine.state.get(), 0}), features.data(), 4, m.data(),
                       nullptr);
    poisoned = for_pruned_rows(n, *engine.model, static_cast<char*>(engine.packed.get()),
                               [](char* row, int64_t bytes) { std::memset(row, 0xff, bytes); });
  }
  expect(poisoned > 20 && masks[0] == masks[1], what + ", poisoned rows of site " + std::to_string(site), poisoned);
}

// Samples through a network whose mask is nearly one come back delayed by n_fft - hop.
void check_transform(int n_fft, int hop) {
  Network n = random_network(16, 16, 1, {1}, 0, GateKind::none, StreamPooling::average, false, n_fft);
  n.g.hop = hop;
  std::fill(n.back.begin(), n.back.end(), 0.0f);
  std::fill(n.back_bias.begin(), n.back_bias.end(), 80.0f);
  Engine engine(n, Precision::float32, {1, 1});
  const std::vector<float> samples = normal(size_t(hop) * 20, 1);
  std::vector<float> enhanced(samples.size());
  dyncp::enhance_hops(*engine.model, dyncp::one_stream({engine.state.get(), 0}), samples.data(), 20, enhanced.data(),
                      nullptr);
  double worst = 0;
  for (size_t i = n_fft - hop; i < samples.size(); ++i) {
    note(worst, std::fabs(enhanced[i] - samples[i - (n_fft - hop)]));
  }
  expect(worst < 2e-6, "samples survive a transform of " + std::to_string(n_fft) + " by " + std::to_string(hop), worst);
  // The features of the last frame against the transform as a plain sum; in bins next to nothing, the rounding of the
  // transform weighs most.
  const int place = (20 - 1) % dyncp::kTileFrames;
  const float* features =
      dyncp::at<float>(engine.state.get(), engine.model->features) + place * engine.model->bins_padded;
  worst = 0;
  for (int k = 0; k <= n_fft / 2; ++k) {
    std::complex<double> sum = 0;
    for (int i = 0; i < n_fft; ++i) {
      const double window = std::sqrt(0.5 - 0.5 * std::cos(2 * M_PI * i / n_fft));
      sum += window * samples[samples.size() - n_fft + i] * std::polar(1.0, -2 * M_PI * i * k / n_fft);
    }
    const double wanted = std::pow(std::abs(sum) + 1e-9, 0.3);
    note(worst, std::fabs(features[k] - wanted) / wanted);
  }
  expect(worst < 2e-4, "features of a transform of " + std::to_string(n_fft), worst);
}

// Rows of pruned channels lie on pages of their own, and those pages are made unreadable.
void check_unread(int site, Precision precision) {
  const Network n = random_network(32, 48, 3, {1, 2}, site, GateKind::constant, StreamPooling::average, true);
  const int64_t page = sysconf(_SC_PAGESIZE);
  const FoldedView view = n.view();
  const int64_t bytes = dyncp::packed_bytes(view, precision, page);
  char* packed =
      static_cast<char*>(mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  dyncp::pack_model(view, precision, packed, page);
  const PackedHeader& model = dyncp::checked_model(packed, bytes);
  int taken = 0;
  for_pruned_rows(n, model, packed, [&](char* row, int64_t) { taken += mprotect(row, page, PROT_NONE) == 0; });
  const dyncp::Memory state = dyncp::allocate(model.state_bytes);
  dyncp::initialise_state(model, {1, 1}, state.get());
  std::vector<float> features(size_t(n.g.bins) * 4, 1.0f), masks(features.size());
  dyncp::step_frames(model, dyncp::one_stream({state.get(), 0}), features.data(), 4, masks.data(), nullptr);
  expect(taken > 20 && std::isfinite(masks.back()), "pruned rows of site " + std::to_string(site) + " are not read",
         taken);
  const dyncp::Memory states = dyncp::allocate(4 * model.state_bytes);
  for (int i = 0; i < 4; ++i) {
    dyncp::initialise_state(model, {1, 1}, static_cast<char*>(states.get()) + i * model.state_bytes);
  }
  struct {
    char* states;
    int64_t bytes;
  } const source = {static_cast<char*>(states.get()), model.state_bytes};
  const auto get = [](const void* from, int64_t i) {
    const auto& all = *static_cast<const decltype(source)*>(from);
    return dyncp::Stream{all.states + i * all.bytes, 0};
  };
  std::fill(masks.begin(), masks.end(), NAN);
  dyncp::step_frames(model, {0, 4, &source, get}, features.data(), 1, masks.data(), nullptr);
  expect(std::isfinite(masks.front()) && std::isfinite(masks.back()),
         "pruned rows of site " + std::to_string(site) + " are not read by streams in step", masks.back());
  // A shift that keeps every channel must stumble over those pages, else they prove nothing.
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dyncp::step_frames(model, dyncp::one_stream({state.get(), 100}), features.data(), 1, masks.data(), nullptr);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  expect(WIFSIGNALED(status), "reading every row of site " + std::to_string(site) + " is noticed", status);
  munmap(packed, bytes + page);
}

void check_allocation() {
  for (const auto& [bytes, alignment] : {std::pair<int64_t, uintptr_t>(100, 64), {3 << 20, 2 << 20}}) {
    const dyncp::Memory memory = dyncp::allocate(bytes);
    std::memset(memory.get(), 1, bytes);
    expect(reinterpret_cast<uintptr_t>(memory.get()) % alignment == 0,
           std::to_string(bytes) + " bytes are aligned to " + std::to_string(alignment), 0);
  }
}

void check_all(const std::string& isa, bool is_short) {
  dyncp::set_active_isa(isa.c_str());
  // Where bytes are multiplied as such, activations have 16 bits.
  const double byte_bound = isa == "avx512vnni" || isa == "neondot" ? 1e-4 : 3e-6;
  const struct {
    int channels, hidden, taps;
    std::vector<int> dilations;
  } shapes[] = {{32, 64, 3, {1, 2, 4}}, {19, 37, 2, {1, 3}}, {130, 50, 1, {1}}, {7, 200, 5, {2, 1}}};
  const StreamPooling poolings[] = {StreamPooling::average, StreamPooling::exponential, StreamPooling::window};
  int variant = 0;
  for (const auto& shape : shapes) {
    for (int site = 0; site < 4; ++site) {
      for (float crossover : {-1.0f, 2.0f}) {
        ++variant;
        const Network n = random_network(shape.channels, shape.hidden, shape.taps, shape.dilations, site,
                                         variant % 5 == 0 ? GateKind::constant : GateKind::pooled,
                                         poolings[variant % 3], variant % 2 == 0);
        const std::string what = isa + " " + std::to_string(shape.channels) + "/" + std::to_string(shape.hidden) +
                                 " site " + std::to_string(site) + (crossover < 0 ? " masked" : " gathered");
        check_network(n, Precision::float32, crossover, 3e-6, what);
        check_network(n, Precision::int24, crossover, 3e-6, what + " int24");
        check_network(of_bytes(n), Precision::int8, crossover, byte_bound, what + " int8 of bytes");
        if (n.g.gate_kind == GateKind::pooled && site != 0) continue;
        check_network(n, Precision::float16, crossover, 3e-3, what + " float16");
        check_network(n, Precision::bfloat16, crossover, 3e-2, what + " bfloat16");
        check_network(n, Precision::int8, crossover, 8e-2, what + " int8");
      }
    }
  }
  for (Precision precision : {Precision::float32, Precision::int24, Precision::int8}) {
    const std::string what = isa + " precision " + std::to_string(static_cast<int>(precision));
    check_magnitudes(precision, precision == Precision::int8 ? byte_bound : 3e-6, what);
    for (int site = 1; site < 4; ++site) check_poisoned(site, precision, what);
  }
  for (int n_fft : {8, 16, 32, 64, 128, 512}) {
    check_transform(n_fft, n_fft / 2);
    if (n_fft == 128) check_transform(n_fft, n_fft / 4);
  }
  if (is_short) return;
  for (int site = 1; site < 4; ++site) {
    check_unread(site, Precision::float32);
    check_unread(site, Precision::int24);
    check_unread(site, Precision::int8);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const bool is_short = count > 1 && std::strcmp(arguments[1], "--no-page-protection") == 0;
  check_allocation();
  for (dyncp::Isa isa : dyncp::supported_isas()) check_all(dyncp::isa_name(isa), is_short);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
