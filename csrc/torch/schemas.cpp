// Schemas of the offline ops and the step.  dyncp_kernels/ops/_schemas.py holds the same text for installations without
// this library.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(dyncp, library) {
  library.def(
      "gated_conv(Tensor x, Tensor? hidden_gate, Tensor? out_gate, Tensor? w_in, Tensor? b_in, Tensor w_dw, "
      "Tensor? b_dw, Tensor w_out, Tensor? b_out, Tensor? slope_in=None, Tensor? slope_dw=None, *, int dilation=1, "
      "bool causal=True, bool residual=True) -> Tensor");
  library.def(
      "gated_conv_backward(Tensor grad, Tensor x, Tensor? hidden_gate, Tensor? out_gate, Tensor? w_in, Tensor? b_in, "
      "Tensor w_dw, Tensor? b_dw, Tensor w_out, Tensor? b_out, Tensor? slope_in=None, Tensor? slope_dw=None, *, "
      "int dilation=1, bool causal=True, bool residual=True, int wanted=2047) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "gated_conv_step(Tensor x, Tensor history, Tensor? hidden_gate, Tensor? out_gate, Tensor? w_in, Tensor? b_in, "
      "Tensor w_dw, Tensor? b_dw, Tensor w_out, Tensor? b_out, Tensor? slope_in=None, Tensor? slope_dw=None, *, "
      "int dilation=1, bool residual=True) -> (Tensor, Tensor)");
  library.def(
      "gated_conv_step_(Tensor x, Tensor(a!) history, Tensor? hidden_gate, Tensor? out_gate, Tensor? w_in, "
      "Tensor? b_in, Tensor w_dw, Tensor? b_dw, Tensor w_out, Tensor? b_out, Tensor? slope_in=None, "
      "Tensor? slope_dw=None, *, int dilation=1, bool residual=True) -> Tensor");
  library.def("pointwise(Tensor x, Tensor w, Tensor? b, str activation=\"none\") -> Tensor");
  library.def(
      "channel_gate(Tensor x, Tensor w_reduce, Tensor? b_reduce, Tensor w_expand, Tensor? b_expand, *, "
      "str pooling=\"exponential\", int window=8, float shift=0.0) -> Tensor");
}
