// The whole network on whole clips as an op.  `weights` holds all of its weights, `plan` says what they are:
// dyncp_kernels/clip_engine.py makes both, and has the order of the numbers.
#include "core/clip_network.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>

#include "torch/block_call.h"
#include "torch/check_text.h"

namespace dyncp::binding {
namespace {

// Reads the plan front to back; every weight that it names lies inside `weights`.
class Plan {
 public:
  Plan(const Check& check, const Tensor& weights, const Tensor& plan)
      : check_(check),
        weights_(static_cast<const float*>(weights.const_data_ptr())),
        count_(weights.numel()),
        plan_(static_cast<const int64_t*>(plan.const_data_ptr())),
        length_(plan.numel()) {}

  int64_t number(const char* name, int64_t least, int64_t most) {
    const int64_t value = next();
    check_(least <= value && value <= most, DYNCP_TEXT(std::string("plan: ") + name + " must be between " +
                                                           std::to_string(least) + " and " + std::to_string(most),
                                                       std::to_string(value)));
    return value;
  }

  // `count` weights, or null where the plan says -1 and the weight may be missing.
  const float* weight(int64_t count, bool may_miss = false) {
    const int64_t offset = next();
    if (may_miss && offset == -1) return nullptr;
    check_(0 <= offset && offset <= count_ - count,
           DYNCP_TEXT("plan: every weight must lie inside the " + std::to_string(count_) + " weights",
                      std::to_string(count) + " from " + std::to_string(offset) + " on"));
    return weights_ + offset;
  }

  void end() const {
    check_(at_ == length_, DYNCP_TEXT("plan must have " + std::to_string(at_) + " numbers", std::to_string(length_)));
  }

 private:
  int64_t next() {
    check_(at_ < length_,
           DYNCP_TEXT("plan must have more than " + std::to_string(at_) + " numbers", std::to_string(length_)));
    return plan_[at_++];
  }

  const Check& check_;
  const float* weights_;
  int64_t count_;
  const int64_t* plan_;
  int64_t length_;
  int64_t at_ = 0;
};

ClipNetwork network_of(Plan& plan) {
  constexpr int64_t kMost = 1 << 20;
  ClipNetwork n;
  n.bins = plan.number("bins", 1, kMost);
  n.channels = plan.number("channels", 1, kMost);
  n.hidden = plan.number("hidden", 1, kMost);
  n.taps = plan.number("taps", 1, kMost);
  n.causal = plan.number("causal", 0, 1) != 0;
  n.out_gates = plan.number("gates output channels", 0, 1) * n.channels;
  n.hidden_gates = plan.number("gates hidden channels", 0, 1) * n.hidden;
  n.gate_width = plan.number("gate width", 0, kMost);
  n.pooling = static_cast<Pooling>(plan.number("pooling", 0, static_cast<int64_t>(Pooling::global)));
  n.window = plan.number("window", 1, int64_t{1} << 40);
  const int64_t blocks = plan.number("blocks", 0, kMost);
  n.front_weight = plan.weight(n.channels * n.bins);
  n.front_bias = plan.weight(n.channels);
  n.back_weight = plan.weight(n.bins * n.channels);
  n.back_bias = plan.weight(n.bins);
  const bool has_gates = n.gates() > 0, has_network = n.gate_width > 0;
  for (int64_t i = 0; i < blocks; ++i) {
    ClipBlock b;
    b.dilation = plan.number("dilation", 1, kMost);
    b.w_in = plan.weight(n.hidden * n.channels);
    b.b_in = plan.weight(n.hidden);
    b.w_dw = plan.weight(n.hidden * n.taps);
    b.b_dw = plan.weight(n.hidden);
    b.w_out = plan.weight(n.channels * n.hidden);
    b.b_out = plan.weight(n.channels);
    b.slope_in = plan.weight(1, true);
    b.slope_dw = plan.weight(1, true);
    b.w_reduce = plan.weight(n.gate_width * n.channels, !has_network);
    b.b_reduce = plan.weight(n.gate_width, !has_network);
    b.w_expand = plan.weight(n.gates() * n.gate_width, !has_network);
    b.b_expand = plan.weight(n.gates(), !has_gates);
    n.blocks.push_back(b);
  }
  plan.end();
  return n;
}

std::tuple<Tensor, Tensor> clip_masks(const Tensor& features, const Tensor& weights, const Tensor& plan, double shift,
                                      const std::optional<Tensor>& instead) {
  const std::string op = "clip_masks";
  const Check check{op};
  check(features.scalar_type() == ScalarType::Float && features.dim() == 3 && features.is_cpu(),
        DYNCP_TEXT("features must be a float32 tensor (batch, bins, frames) on the CPU",
                   name_of(features.scalar_type()) + ", " + shape_of(features)));
  check(weights.scalar_type() == ScalarType::Float && weights.dim() == 1 && weights.is_contiguous() && weights.is_cpu(),
        DYNCP_TEXT("weights must be a contiguous 1-D float32 tensor on the CPU", shape_of(weights)));
  check(plan.scalar_type() == ScalarType::Long && plan.dim() == 1 && plan.is_contiguous() && plan.is_cpu(),
        DYNCP_TEXT("plan must be a contiguous 1-D int64 tensor on the CPU", shape_of(plan)));
  Plan numbers(check, weights, plan);
  const ClipNetwork network = network_of(numbers);
  check(features.size(1) == network.bins,
        DYNCP_TEXT("features must have " + std::to_string(network.bins) + " bins", shape_of(features)));
  const int64_t batch = features.size(0), frames = features.size(2);
  const int64_t blocks = static_cast<int64_t>(network.blocks.size());
  const std::vector<int64_t> shape = {blocks, batch, network.words(frames).of_row(), network.gates()};
  check(!instead || (instead->scalar_type() == ScalarType::Long && has_sizes(*instead, shape) &&
                     instead->is_contiguous() && instead->is_cpu()),
        DYNCP_TEXT("instead must be a contiguous int64 tensor of shape " + list_of(shape) + " on the CPU",
                   shape_of(*instead)));

  const Tensor rows = torch::stable::contiguous(features);
  const Tensor masks = torch::stable::new_empty(rows, {batch, network.bins, frames});
  const Tensor decisions = torch::stable::new_empty(rows, shape, ScalarType::Long);
  ClipCall call;
  call.batch = batch;
  call.frames = frames;
  call.shift = shift;
  call.features = static_cast<const float*>(rows.const_data_ptr());
  call.masks = static_cast<float*>(masks.mutable_data_ptr());
  call.decisions = static_cast<uint64_t*>(decisions.mutable_data_ptr());
  call.instead = instead ? static_cast<const uint64_t*>(instead->const_data_ptr()) : nullptr;
  call.threads = torch::stable::get_num_threads();
  run_clips(network, call, torch_parallel_for);
  return {masks, decisions};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dyncp, library) {
  library.def(
      "clip_masks(Tensor features, Tensor weights, Tensor plan, float shift=0.0, Tensor? instead=None) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dyncp, CPU, library) { library.impl("clip_masks", TORCH_BOX(&clip_masks)); }

}  // namespace dyncp::binding
