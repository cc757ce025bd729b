#include "torch/checks.h"

#include <utility>
#include <vector>

#include "torch/check_text.h"

namespace dyncp::binding {

void check_block(const std::string& op, const BlockArguments& a) {
  const Check check{op};
  const bool step = a.history != nullptr;
  const ScalarType dtype = a.x.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
            dtype == ScalarType::BFloat16,
        DYNCP_TEXT("x must be float32, float64, float16 or bfloat16", name_of(dtype)));

  const auto given = [](const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; };
  const std::pair<const char*, const Tensor*> floats[] = {{"w_in", given(a.w_in)},
                                                          {"b_in", given(a.b_in)},
                                                          {"w_dw", &a.w_dw},
                                                          {"b_dw", given(a.b_dw)},
                                                          {"w_out", &a.w_out},
                                                          {"b_out", given(a.b_out)},
                                                          {"slope_in", given(a.slope_in)},
                                                          {"slope_dw", given(a.slope_dw)},
                                                          {"history", a.history}};
  const std::pair<const char*, const Tensor*> gates[] = {{"hidden_gate", given(a.hidden_gate)},
                                                         {"out_gate", given(a.out_gate)}};
  const auto check_device = [&](const char* name, const Tensor* tensor) {
    check(tensor == nullptr || tensor->is_cpu(),
          DYNCP_TEXT(std::string(name) + " must be on the device of x, cpu", "another device"));
  };
  for (const auto& [name, tensor] : floats) check_device(name, tensor);
  for (const auto& [name, tensor] : gates) check_device(name, tensor);
  for (const auto& entry : floats) {
    const Tensor* tensor = entry.second;
    check(tensor == nullptr || tensor->scalar_type() == dtype,
          DYNCP_TEXT(std::string(entry.first) + " must have the dtype of x, " + name_of(dtype),
                     name_of(tensor->scalar_type())));
  }
  for (const auto& entry : gates) {
    const Tensor* tensor = entry.second;
    check(tensor == nullptr || tensor->scalar_type() == dtype || tensor->scalar_type() == ScalarType::Bool,
          DYNCP_TEXT(std::string(entry.first) + " must be bool or have the dtype of x, " + name_of(dtype),
                     name_of(tensor->scalar_type())));
  }

  check(a.x.dim() == (step ? 2 : 3),
        DYNCP_TEXT(std::string("x must have shape ") + (step ? "(batch, channels)" : "(batch, channels, frames)"),
                   shape_of(a.x)));
  check(a.w_dw.dim() == 2, DYNCP_TEXT("w_dw must have shape (hidden, taps)", shape_of(a.w_dw)));
  check(a.w_out.dim() == 2, DYNCP_TEXT("w_out must have shape (out_channels, hidden)", shape_of(a.w_out)));
  const int64_t batch = a.x.size(0);
  const int64_t channels = a.x.size(1);
  const int64_t hidden = a.w_dw.size(0);
  const int64_t taps = a.w_dw.size(1);
  const int64_t out_channels = a.w_out.size(0);
  check(hidden >= 1 && taps >= 1, DYNCP_TEXT("w_dw must have at least one row and one tap", shape_of(a.w_dw)));
  check(a.dilation >= 1, DYNCP_TEXT("dilation must be at least 1", std::to_string(a.dilation)));
  constexpr int64_t kFarthest = int64_t{1} << 30;
  check(taps - 1 <= kFarthest / a.dilation,
        DYNCP_TEXT("(taps - 1) * dilation must be at most 2^30",
                   std::to_string(taps) + " taps and dilation " + std::to_string(a.dilation)));
  check(a.causal || (taps - 1) * a.dilation % 2 == 0,
        DYNCP_TEXT("a centred convolution needs an even (taps - 1) * dilation",
                   std::to_string(taps) + " taps and dilation " + std::to_string(a.dilation)));
  if (!a.w_in) {
    check(!a.b_in, DYNCP_TEXT("b_in must be None without w_in", "a tensor"));
    check(!a.slope_in, DYNCP_TEXT("slope_in must be None without w_in", "a tensor"));
    check(hidden == channels,
          DYNCP_TEXT("w_dw must have a row for each of the " + std::to_string(channels) + " channels of x without w_in",
                     std::to_string(hidden)));
  } else {
    check(has_sizes(*a.w_in, {hidden, channels}),
          DYNCP_TEXT("w_in must have shape (hidden, channels) = " + list_of({hidden, channels}), shape_of(*a.w_in)));
  }
  check(a.w_out.size(1) == hidden,
        DYNCP_TEXT("w_out must have a column for each of the " + std::to_string(hidden) + " rows of w_dw",
                   shape_of(a.w_out)));
  const auto check_bias = [&](const char* name, const std::optional<Tensor>& bias, int64_t length) {
    check(!bias || has_sizes(*bias, {length}),
          DYNCP_TEXT(std::string(name) + " must have shape " + list_of({length}), shape_of(*bias)));
  };
  check_bias("b_in", a.b_in, hidden);
  check_bias("b_dw", a.b_dw, hidden);
  check_bias("b_out", a.b_out, out_channels);
  const auto check_slope = [&](const char* name, const std::optional<Tensor>& slope) {
    check(!slope || slope->numel() == 1,
          DYNCP_TEXT(std::string(name) + " must have one element", std::to_string(slope->numel())));
  };
  check_slope("slope_in", a.slope_in);
  check_slope("slope_dw", a.slope_dw);
  check(!a.residual || out_channels == channels,
        DYNCP_TEXT("the residual needs as many rows of w_out as channels of x, " + std::to_string(channels),
                   std::to_string(out_channels)));

  const auto check_gate = [&](const char* name, const std::optional<Tensor>& gate, int64_t rows) {
    if (!gate) return;
    if (step) {
      check(has_sizes(*gate, {batch, rows}),
            DYNCP_TEXT(std::string(name) + " must have shape " + list_of({batch, rows}), shape_of(*gate)));
    } else {
      const int64_t frames = a.x.size(2);
      check(has_sizes(*gate, {batch, rows, frames}) || has_sizes(*gate, {batch, rows, 1}),
            DYNCP_TEXT(std::string(name) + " must have shape " + list_of({batch, rows, frames}) + " or " +
                           list_of({batch, rows, 1}),
                       shape_of(*gate)));
    }
  };
  check_gate("hidden_gate", a.hidden_gate, hidden);
  check_gate("out_gate", a.out_gate, out_channels);
  if (step) {
    const int64_t length = (taps - 1) * a.dilation;
    check(has_sizes(*a.history, {batch, hidden, length}),
          DYNCP_TEXT("history must have shape " + list_of({batch, hidden, length}), shape_of(*a.history)));
  }
}

void check_grad(const std::string& op, const Tensor& grad, const BlockArguments& a) {
  const Check check{op};
  const std::vector<int64_t> shape = {a.x.size(0), a.w_out.size(0), a.x.size(2)};
  check(grad.is_cpu(), DYNCP_TEXT("grad must be on the device of x, cpu", "another device"));
  check(grad.scalar_type() == a.x.scalar_type(),
        DYNCP_TEXT("grad must have the dtype of x, " + name_of(a.x.scalar_type()), name_of(grad.scalar_type())));
  check(has_sizes(grad, shape), DYNCP_TEXT("grad must have shape " + list_of(shape), shape_of(grad)));
}

}  // namespace dyncp::binding
