// CPU binding of the block ops.
#include "core/gated_conv.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "torch/block_call.h"
#include "torch/checks.h"

namespace dyncp::binding {
namespace {

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
  check_block("gated_conv_step_", arguments);
  return run_step(arguments, history);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dyncp, CPU, library) {
  library.impl("gated_conv", TORCH_BOX(&gated_conv));
  library.impl("gated_conv_step", TORCH_BOX(&gated_conv_step));
  library.impl("gated_conv_step_", TORCH_BOX(&gated_conv_step_in_place));
}

}  // namespace dyncp::binding
