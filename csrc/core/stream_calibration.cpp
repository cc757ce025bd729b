// Where reading every row overtakes reading only the kept ones: measured, once per process and kind of model.
#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <random>
#include <vector>

#include "core/aligned_memory.h"
#include "core/isa.h"
#include "core/stream_engine.h"
#include "core/stream_model.h"

namespace dyncp {
namespace {

constexpr float kDensities[] = {0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f};
constexpr int kRounds = 12;
constexpr int kFrames = 2;
constexpr double kGain = 0.97;  // reading every row must win by more than the noise
// Where nearly all are kept, reading them in order is never slower.
constexpr float kMostCrossover = 0.97f;

// A network of the model's geometry and gates with random weights, whose gate scores are plain numbers in the packed
// model, so that they can be drawn anew for every frame: independent random gates, the worst case for caches.
class Rehearsal {
 public:
  explicit Rehearsal(const PackedHeader& model) : geometry_(model.geometry) {
    geometry_.gate_kind = GateKind::constant;
    const Geometry& g = geometry_;
    const size_t wide = std::max(g.channels, g.hidden);
    weights_.resize(std::max<size_t>(static_cast<size_t>(g.channels) * std::max(g.bins, g.hidden), wide * g.taps) +
                    static_cast<size_t>(g.channels) + g.hidden);
    std::uniform_real_distribution<float> uniform(-0.1f, 0.1f);
    for (float& w : weights_) w = uniform(random_);
    const float* w = weights_.data();
    FoldedView folded{};
    folded.geometry = g;
    folded.front_weight = folded.back_weight = w;
    std::vector<float> bias(std::max<size_t>(g.bins, wide));
    folded.front_bias = folded.back_bias = bias.data();
    for (int n = 0; n < g.blocks; ++n) {
      FoldedBlockView block{};
      block.dilation = packed_blocks(model)[n].dilation;
      block.w_in = block.w_out = block.w_dw = w;
      block.b_in = block.b_dw = block.b_out = bias.data();
      block.gate_expand_bias = w;
      folded.blocks.push_back(block);
    }
    packed_ = allocate(packed_bytes(folded, model.precision));
    pack_model(folded, model.precision, packed_.get());
    header_ = &checked_model(packed_.get(), packed_bytes(folded, model.precision));
    state_ = allocate(header_->state_bytes);
    features_.resize(g.bins, 0.5f);
    mask_.resize(g.bins);
  }

  // Median times of a frame at this density of one site, the other site open, in seconds: reading kept rows, reading
  // all.  Half of the frames change all gates (the worst case), half keep them (nearly the real case).
  std::array<double, 2> seconds(bool hidden_site, float density) {
    std::array<std::vector<double>, 2> times;
    initialise_state(*header_, {}, state_.get());
    for (int round = 0; round < kRounds; ++round) {
      for (int reads_all = 0; reads_all < 2; ++reads_all) {
        const float crossover = reads_all ? -1.0f : 2.0f;
        static_cast<StateHeader*>(state_.get())->crossover = {crossover, crossover};
        // The two read different copies of the weights, so each first gets its own back into the caches.
        for (int frame = -1; frame < kFrames; ++frame) {
          if (frame < 1) draw(hidden_site, density);
          const auto start = std::chrono::steady_clock::now();
          step_frames(*header_, one_stream({state_.get(), 0.0f}), features_.data(), 1, mask_.data(), nullptr);
          const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
          if (frame >= 0) times[reads_all].push_back(spent.count());
        }
      }
    }
    for (std::vector<double>& list : times) std::nth_element(list.begin(), list.begin() + list.size() / 2, list.end());
    return {times[0][times[0].size() / 2], times[1][times[1].size() / 2]};
  }

 private:
  void draw(bool hidden_site, float density) {
    const int outputs = header_->channels_padded * geometry_.gates_out;
    std::bernoulli_distribution kept(density);
    for (int n = 0; n < geometry_.blocks; ++n) {
      float* scores = at<float>(packed_.get(), packed_blocks(*header_)[n].gate_expand.bias);
      for (int i = 0; i < geometry_.channels * geometry_.gates_out; ++i) {
        scores[i] = hidden_site || kept(random_) ? 1.0f : -1.0f;
      }
      for (int i = 0; i < geometry_.hidden * geometry_.gates_hidden; ++i) {
        scores[outputs + i] = !hidden_site || kept(random_) ? 1.0f : -1.0f;
      }
    }
  }

  Geometry geometry_;
  std::mt19937 random_{1};
  std::vector<float> weights_, features_, mask_;
  Memory packed_, state_;
  const PackedHeader* header_;
};

// The lowest density from which reading every row stays at least as fast.
float crossover_of(Rehearsal& rehearsal, bool hidden_site) {
  float crossover = kMostCrossover;
  for (auto density = std::rbegin(kDensities); density != std::rend(kDensities); ++density) {
    const std::array<double, 2> times = rehearsal.seconds(hidden_site, *density);
    if (times[1] > kGain * times[0]) break;
    crossover = *density - 0.05f;
  }
  return crossover;
}

struct Known {
  Isa isa;
  Precision precision;
  int32_t channels, hidden, blocks, gates_hidden, gates_out;
  Crossover crossover;
};

}  // namespace

Crossover calibrated_crossover(const PackedHeader& model) {
  static std::mutex mutex;
  static std::vector<Known> known;
  const Geometry& g = model.geometry;
  if (g.gate_kind == GateKind::none || g.blocks == 0) return {1.0f, 1.0f};
  const std::lock_guard<std::mutex> lock(mutex);
  const Isa isa = active_isa();
  for (const Known& entry : known) {
    if (entry.isa == isa && entry.precision == model.precision && entry.channels == g.channels &&
        entry.hidden == g.hidden && entry.blocks == g.blocks && entry.gates_hidden == g.gates_hidden &&
        entry.gates_out == g.gates_out) {
      return entry.crossover;
    }
  }
  Rehearsal rehearsal(model);
  Crossover crossover = {1.0f, 1.0f};
  if (g.gates_hidden) crossover.hidden = crossover_of(rehearsal, true);
  if (g.gates_out) crossover.out = crossover_of(rehearsal, false);
  known.push_back({isa, model.precision, g.channels, g.hidden, g.blocks, g.gates_hidden, g.gates_out, crossover});
  return crossover;
}

}  // namespace dyncp
