// Argument checks of the block ops (dyncp_kernels/ops/_checks.py has the same for fake tensors and the reference).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

namespace dyncp::binding {

using torch::stable::Tensor;

struct BlockArguments {
  const Tensor& x;
  const std::optional<Tensor>& hidden_gate;
  const std::optional<Tensor>& out_gate;
  const std::optional<Tensor>& w_in;
  const std::optional<Tensor>& b_in;
  const Tensor& w_dw;
  const std::optional<Tensor>& b_dw;
  const Tensor& w_out;
  const std::optional<Tensor>& b_out;
  const std::optional<Tensor>& slope_in;
  const std::optional<Tensor>& slope_dw;
  int64_t dilation;
  bool causal;
  bool residual;
  const Tensor* history = nullptr;  // given for a step
};

// Throws std::runtime_error "<op>: <what must hold> (got <what came>)".
void check_block(const std::string& op, const BlockArguments& arguments);

// The gradient of the output, for the backward op.
void check_grad(const std::string& op, const Tensor& grad, const BlockArguments& arguments);

}  // namespace dyncp::binding
