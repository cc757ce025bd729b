"""Schemas of the ops, for installations without the native extension (csrc/torch/schemas.cpp has the same)."""

from __future__ import annotations

_WEIGHTS = (
    "Tensor? hidden_gate, Tensor? out_gate, Tensor? w_in, Tensor? b_in, Tensor w_dw, Tensor? b_dw, Tensor w_out, "
    "Tensor? b_out, Tensor? slope_in=None, Tensor? slope_dw=None, *, int dilation=1"
)

SCHEMAS = {
    "gated_conv": f"(Tensor x, {_WEIGHTS}, bool causal=True, bool residual=True) -> Tensor",
    "gated_conv_backward": (
        f"(Tensor grad, Tensor x, {_WEIGHTS}, bool causal=True, bool residual=True, int wanted=2047) -> "
        f"({', '.join(['Tensor'] * 11)})"
    ),
    "gated_conv_step": f"(Tensor x, Tensor history, {_WEIGHTS}, bool residual=True) -> (Tensor, Tensor)",
    "gated_conv_step_": f"(Tensor x, Tensor(a!) history, {_WEIGHTS}, bool residual=True) -> Tensor",
    "pointwise": '(Tensor x, Tensor w, Tensor? b, str activation="none") -> Tensor',
    "channel_gate": (
        "(Tensor x, Tensor w_reduce, Tensor? b_reduce, Tensor w_expand, Tensor? b_expand, *, "
        'str pooling="exponential", int window=8, float shift=0.0) -> Tensor'
    ),
}
