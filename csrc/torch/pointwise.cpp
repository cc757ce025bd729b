// CPU binding of the 1x1 convolution (dyncp_kernels/ops/pointwise.py has the same checks for fake tensors).
#include "core/pointwise.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>

#include "torch/block_call.h"
#include "torch/check_text.h"

namespace dyncp::binding {
namespace {

Activation activation_named(const Check& check, const std::string& name) {
  check(name == "none" || name == "relu" || name == "sigmoid",
        DYNCP_TEXT("activation must be one of none, relu, sigmoid", name));
  return name == "none" ? Activation::none : name == "relu" ? Activation::relu : Activation::sigmoid;
}

Tensor pointwise(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, const std::string& activation) {
  const std::string op = "pointwise";
  const Check check{op};
  check_kernel_dtype(check, x);
  check_like(check, "w", w, x);
  if (b) check_like(check, "b", *b, x);
  check(x.dim() == 3, DYNCP_TEXT("x must have shape (batch, channels, frames)", shape_of(x)));
  const int64_t channels = x.size(1);
  check(w.dim() == 2 && w.size(1) == channels,
        DYNCP_TEXT("w must have shape (out_channels, " + std::to_string(channels) + ")", shape_of(w)));
  check(!b || has_sizes(*b, {w.size(0)}), DYNCP_TEXT("b must have shape " + list_of({w.size(0)}), shape_of(*b)));

  Pointwise call;
  call.activation = activation_named(check, activation);
  call.dtype = dtype_of(x);
  call.batch = x.size(0);
  call.channels = channels;
  call.out_channels = w.size(0);
  call.frames = x.size(2);
  const Tensor rows = call.frames > 1 && x.stride(2) != 1 ? torch::stable::contiguous(x) : x;
  call.x = rows.const_data_ptr();
  call.x_batch_stride = rows.stride(0);
  call.x_channel_stride = rows.stride(1);
  const Tensor weights = channels > 1 && w.stride(1) != 1 ? torch::stable::contiguous(w) : w;
  call.w = weights.const_data_ptr();
  call.w_row_stride = weights.stride(0);
  const Tensor bias = b ? torch::stable::contiguous(*b) : w;
  call.b = b ? bias.const_data_ptr() : nullptr;
  const Tensor y = torch::stable::new_empty(x, {call.batch, call.out_channels, call.frames});
  dyncp::pointwise(call, y.mutable_data_ptr(), torch_parallel_for);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dyncp, CPU, library) { library.impl("pointwise", TORCH_BOX(&pointwise)); }

}  // namespace dyncp::binding
