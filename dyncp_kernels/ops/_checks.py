"""Argument checks of the ops, for fake tensors and for the reference (csrc/torch/checks.cpp has the same)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _words_for(value: Any) -> Any:
    """A tensor as its shape, a dtype without "torch."; anything else as it is."""
    if isinstance(value, Tensor):
        return f"shape {list(value.shape)}"
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


class Check:
    """Raises "<op>: <what must hold> (got <what came>)" when a condition is false.

    `must` has a "{}" for each of `values`; text is made only when it is needed, since every call is checked.
    """

    def __init__(self, op: str) -> None:
        self.op = op

    def __call__(self, condition: bool, must: str, got: Any, *values: Any) -> None:
        if not condition:
            must = must.format(*map(_words_for, values))
            raise RuntimeError(f"{self.op}: {must} (got {_words_for(got)})")


def refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """Raise where forward-mode differentiation hands over a tangent: an op without a rule for it would drop it."""
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            Check(op)(
                False,
                f"no argument may have a tangent, because the op has no rule for forward mode; use {op}_reference",
                "a tensor with a tangent",
            )


def check_kernel_dtype(check: Check, x: Tensor) -> None:
    """Check that `x` has a dtype of the kernels."""
    check(x.dtype in _DTYPES, "x must be float32, float64, float16 or bfloat16", x.dtype)


def check_like(check: Check, x: Tensor, **tensors: Tensor | None) -> None:
    """Check that the tensors are on the device of `x` and have its dtype."""
    device, dtype = x.device, x.dtype
    for name, tensor in tensors.items():
        if tensor is not None:
            check(tensor.device == device, "{} must be on the device of x, {}", tensor.device, name, device)
            check(tensor.dtype == dtype, "{} must have the dtype of x, {}", tensor.dtype, name, dtype)


def check_block(
    op: str,
    x: Tensor,
    hidden_gate: Tensor | None,
    out_gate: Tensor | None,
    w_in: Tensor | None,
    b_in: Tensor | None,
    w_dw: Tensor,
    b_dw: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    slope_in: Tensor | None,
    slope_dw: Tensor | None,
    *,
    dilation: int,
    causal: bool,
    residual: bool,
    history: Tensor | None = None,
) -> None:
    """Check the arguments of `gated_conv`, or of its step when `history` is given.

    Raises:
        RuntimeError: "<op>: <what must hold> (got <what came>)".
    """
    check = Check(op)
    step = history is not None
    check_kernel_dtype(check, x)
    check_like(check, x, w_in=w_in, b_in=b_in, w_dw=w_dw, b_dw=b_dw, w_out=w_out, b_out=b_out)
    check_like(check, x, slope_in=slope_in, slope_dw=slope_dw, history=history)
    for name, gate in (("hidden_gate", hidden_gate), ("out_gate", out_gate)):
        if gate is not None:
            check(gate.device == x.device, "{} must be on the device of x, {}", gate.device, name, x.device)
            fits = gate.dtype == torch.bool or gate.dtype == x.dtype
            check(fits, "{} must be bool or have the dtype of x, {}", gate.dtype, name, x.dtype)

    axes = "(batch, channels)" if step else "(batch, channels, frames)"
    check(x.dim() == (2 if step else 3), "x must have shape {}", x, axes)
    check(w_dw.dim() == 2, "w_dw must have shape (hidden, taps)", w_dw)
    check(w_out.dim() == 2, "w_out must have shape (out_channels, hidden)", w_out)
    channels = x.shape[1]
    hidden, taps = w_dw.shape
    out_channels = w_out.shape[0]
    check(hidden >= 1 and taps >= 1, "w_dw must have at least one row and one tap", w_dw)
    check(dilation >= 1, "dilation must be at least 1", dilation)
    check(
        (taps - 1) * dilation <= 2**30,
        "(taps - 1) * dilation must be at most 2^30",
        f"{taps} taps and dilation {dilation}",
    )
    check(
        causal or (taps - 1) * dilation % 2 == 0,
        "a centred convolution needs an even (taps - 1) * dilation",
        f"{taps} taps and dilation {dilation}",
    )
    if w_in is None:
        check(b_in is None, "b_in must be None without w_in", "a tensor")
        check(slope_in is None, "slope_in must be None without w_in", "a tensor")
        check(
            hidden == channels, "w_dw must have a row for each of the {} channels of x without w_in", hidden, channels
        )
    else:
        fits = w_in.dim() == 2 and w_in.shape[0] == hidden and w_in.shape[1] == channels
        check(fits, "w_in must have shape (hidden, channels) = [{}, {}]", w_in, hidden, channels)
    check(
        w_out.shape[1] == hidden,
        "w_out must have a column for each of the {} rows of w_dw",
        w_out,
        hidden,
    )
    for name, bias, length in (("b_in", b_in, hidden), ("b_dw", b_dw, hidden), ("b_out", b_out, out_channels)):
        if bias is not None:
            fits = bias.dim() == 1 and bias.shape[0] == length
            check(fits, "{} must have shape [{}]", bias, name, length)
    for name, slope in (("slope_in", slope_in), ("slope_dw", slope_dw)):
        if slope is not None:
            check(slope.numel() == 1, "{} must have one element", slope.numel(), name)
    check(
        not residual or out_channels == channels,
        "the residual needs as many rows of w_out as channels of x, {}",
        out_channels,
        channels,
    )

    batch = x.shape[0]
    for name, gate, rows in (("hidden_gate", hidden_gate, hidden), ("out_gate", out_gate, out_channels)):
        if gate is None:
            continue
        if step:
            fits = gate.dim() == 2 and gate.shape[0] == batch and gate.shape[1] == rows
            check(fits, "{} must have shape [{}, {}]", gate, name, batch, rows)
        else:
            frames = x.shape[2]
            fits = gate.dim() == 3 and gate.shape[0] == batch and gate.shape[1] == rows
            fits = fits and (gate.shape[2] == 1 or gate.shape[2] == frames)
            must = "{} must have shape [{}, {}, {}] or [{}, {}, 1]"
            check(fits, must, gate, name, batch, rows, frames, batch, rows)
    if history is not None:
        length = (taps - 1) * dilation
        fits = history.dim() == 3 and history.shape[0] == batch
        fits = fits and history.shape[1] == hidden and history.shape[2] == length
        check(fits, "history must have shape [{}, {}, {}]", history, batch, hidden, length)


def check_grad(op: str, grad: Tensor, x: Tensor, w_out: Tensor) -> None:
    """Check the gradient of the output that `gated_conv_backward` gets.

    Raises:
        RuntimeError: its shape, dtype or device is not that of the output.
    """
    check = Check(op)
    shape = [x.shape[0], w_out.shape[0], x.shape[2]]
    check_like(check, x, grad=grad)
    check(grad.dim() == 3 and list(grad.shape) == shape, "grad must have shape {}", grad, shape)
