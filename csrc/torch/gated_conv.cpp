// CPU binding of the block ops.
#include "core/gated_conv.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "torch/block_call.h"
#include "torch/check_text.h"
#include "torch/checks.h"

namespace dyncp::binding {
namespace {

using torch::headeronly::ScalarType;
using Maybe = std::optional<Tensor>;

Tensor gated_conv(const Tensor& x, const Maybe& hidden_gate, const Maybe& out_gate, const Maybe& w_in,
                  const Maybe& b_in, const Tensor& w_dw, const Maybe& b_dw, const Tensor& w_out, const Maybe& b_out,
                  const Maybe& slope_in, const Maybe& slope_dw, int64_t dilation, bool causal, bool residual) {
  const BlockArguments arguments{x,     hidden_gate, out_gate, w_in,     b_in,     w_dw,   b_dw,
                                 w_out, b_out,       slope_in, slope_dw, dilation, causal, residual};
  check_block("gated_conv", arguments);
  const Tensor y = torch::stable::new_empty(x, {x.size(0), w_out.size(0), x.size(2)});
  const BlockCall block(arguments);
  dyncp::gated_conv(block.call(), y.mutable_data_ptr(), torch_parallel_for);
  return y;
}

// Gradients in the order of the arguments; those that nobody wants are empty tensors.
class Gradients {
 public:
  Gradients(const Tensor& x, int64_t wanted) : x_(x), wanted_(wanted) {}

  void* add(const Maybe& argument) {
    const int64_t bit = static_cast<int64_t>(tensors_.size());
    const bool want = (wanted_ >> bit & 1) != 0 && argument && argument->scalar_type() != ScalarType::Bool;
    tensors_.push_back(want ? torch::stable::new_empty(x_, argument->sizes()) : torch::stable::new_empty(x_, {0}));
    return want ? tensors_.back().mutable_data_ptr() : nullptr;
  }

  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  const Tensor& x_;
  int64_t wanted_;
  std::vector<Tensor> tensors_;
};

using ElevenTensors =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ElevenTensors gated_conv_backward(const Tensor& grad, const Tensor& x, const Maybe& hidden_gate, const Maybe& out_gate,
                                  const Maybe& w_in, const Maybe& b_in, const Tensor& w_dw, const Maybe& b_dw,
                                  const Tensor& w_out, const Maybe& b_out, const Maybe& slope_in, const Maybe& slope_dw,
                                  int64_t dilation, bool causal, bool residual, int64_t wanted) {
  const BlockArguments arguments{x,     hidden_gate, out_gate, w_in,     b_in,     w_dw,   b_dw,
                                 w_out, b_out,       slope_in, slope_dw, dilation, causal, residual};
  check_block("gated_conv_backward", arguments);
  check_grad("gated_conv_backward", grad, arguments);
  Gradients results(x, wanted);
  GatedConvGradients to;
  to.x = results.add(x);
  to.hidden_gate = results.add(hidden_gate);
  to.out_gate = results.add(out_gate);
  to.w_in = results.add(w_in);
  to.b_in = results.add(b_in);
  to.w_dw = results.add(w_dw);
  to.b_dw = results.add(b_dw);
  to.w_out = results.add(w_out);
  to.b_out = results.add(b_out);
  to.slope_in = results.add(slope_in);
  to.slope_dw = results.add(slope_dw);
  if (hidden_gate) to.hidden_gate_frames = hidden_gate->size(2);
  if (out_gate) to.out_gate_frames = out_gate->size(2);
  const BlockCall block(arguments);
  const Tensor dense = torch::stable::contiguous(grad);
  dyncp::gated_conv_backward(block.call(), dense.const_data_ptr(), to, torch_parallel_for);
  const std::vector<Tensor>& t = results.tensors();
  return {t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10]};
}

Tensor run_step(const BlockArguments& arguments, const Tensor& after) {
  const Tensor& before = *arguments.history;
  const Tensor y = torch::stable::new_empty(arguments.x, {arguments.x.size(0), arguments.w_out.size(0)});
  const BlockCall block(arguments);
  History history;
  history.before = before.const_data_ptr();
  history.after = after.mutable_data_ptr();
  for (int i = 0; i < 3; ++i) {
    history.before_strides[i] = before.stride(i);
    history.after_strides[i] = after.stride(i);
  }
  dyncp::gated_conv_step(block.call(), history, y.mutable_data_ptr(), torch_parallel_for);
  return y;
}

std::tuple<Tensor, Tensor> gated_conv_step(const Tensor& x, const Tensor& history, const Maybe& hidden_gate,
                                           const Maybe& out_gate, const Maybe& w_in, const Maybe& b_in,
                                           const Tensor& w_dw, const Maybe& b_dw, const Tensor& w_out,
                                           const Maybe& b_out, const Maybe& slope_in, const Maybe& slope_dw,
                                           int64_t dilation, bool residual) {
  const BlockArguments arguments{x,     hidden_gate, out_gate, w_in,     b_in, w_dw,     b_dw,    w_out,
                                 b_out, slope_in,    slope_dw, dilation, true, residual, &history};
  check_block("gated_conv_step", arguments);
  const Tensor after = torch::stable::new_empty(history, history.sizes());
  const Tensor y = run_step(arguments, after);
  return {y, after};
}

Tensor gated_conv_step_in_place(const Tensor& x, const Tensor& history, const Maybe& hidden_gate, const Maybe& out_gate,
                                const Maybe& w_in, const Maybe& b_in, const Tensor& w_dw, const Maybe& b_dw,
                                const Tensor& w_out, const Maybe& b_out, const Maybe& slope_in, const Maybe& slope_dw,
                                int64_t dilation, bool residual) {
  const BlockArguments arguments{x,     hidden_gate, out_gate, w_in,     b_in, w_dw,     b_dw,    w_out,
                                 b_out, slope_in,    slope_dw, dilation, true, residual, &history};
  const std::string op = "gated_conv_step_";
  check_block(op, arguments);
  bool shares = false;
  for (int64_t axis = 0; axis < 3; ++axis) shares |= history.size(axis) > 1 && history.stride(axis) == 0;
  Check{op}(!shares, DYNCP_TEXT("history must have memory of its own for every value", "an expanded tensor"));
  return run_step(arguments, history);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dyncp, CPU, library) {
  library.impl("gated_conv", TORCH_BOX(&gated_conv));
  library.impl("gated_conv_backward", TORCH_BOX(&gated_conv_backward));
  library.impl("gated_conv_step", TORCH_BOX(&gated_conv_step));
  library.impl("gated_conv_step_", TORCH_BOX(&gated_conv_step_in_place));
}

}  // namespace dyncp::binding
