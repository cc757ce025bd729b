"""The streaming twin of `gated_conv`: one frame at a time, with the past of the depthwise input as explicit state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dyncp_kernels.ops._checks import check_block
from dyncp_kernels.ops._registration import LIBRARY, refuse_gradient, register_autocast, register_reference
from dyncp_kernels.ops.reference import gated_conv_step_reference

_TENSORS = 10  # after x and history


def gated_conv_step(
    x: Tensor,
    history: Tensor,
    hidden_gate: Tensor | None,
    out_gate: Tensor | None,
    w_in: Tensor | None,
    b_in: Tensor | None,
    w_dw: Tensor,
    b_dw: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    slope_in: Tensor | None = None,
    slope_dw: Tensor | None = None,
    *,
    dilation: int = 1,
    residual: bool = True,
) -> tuple[Tensor, Tensor]:
    """One frame of the causal :func:`~dyncp_kernels.ops.gated_conv`, functional.

    Fed frame by frame, starting from a history of zeros, it gives the frames of the causal ``gated_conv``.  The
    formula, the weights and their meaning are the same.  For inference: it has no gradient.

    Args:
        x: one frame (B, C).
        history: the last (K - 1) * dilation frames of u, oldest first: (B, H, (K - 1) * dilation); zeros at the start.
        hidden_gate: (B, H), bool or the dtype of x, or None.
        out_gate: (B, Co), bool or the dtype of x, or None.
        w_in: (H, C) or None.
        b_in: (H,) or None.
        w_dw: (H, K).
        b_dw: (H,) or None.
        w_out: (Co, H).  With a hidden gate a transposed layout (``w_out.t()`` contiguous) is fastest: columns of
            active channels then lie in one piece.
        b_out: (Co,) or None.
        slope_in: one element, or None for ReLU.
        slope_dw: one element, or None for ReLU.
        dilation: frames between neighbouring taps.
        residual: add x (needs Co = C).

    Returns:
        y (B, Co), and the history for the next frame (a new tensor).

    Raises:
        RuntimeError: a shape, dtype, device or value does not fit:
            "gated_conv_step: <what must hold> (got <what came>)".
    """
    return torch.ops.dyncp.gated_conv_step(
        *(x, history, hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw),
        **{"dilation": dilation, "residual": residual},
    )


def gated_conv_step_(
    x: Tensor,
    history: Tensor,
    hidden_gate: Tensor | None,
    out_gate: Tensor | None,
    w_in: Tensor | None,
    b_in: Tensor | None,
    w_dw: Tensor,
    b_dw: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    slope_in: Tensor | None = None,
    slope_dw: Tensor | None = None,
    *,
    dilation: int = 1,
    residual: bool = True,
) -> Tensor:
    """As :func:`gated_conv_step`, but `history` is updated in place and only y (B, Co) is returned.

    Raises:
        RuntimeError: a shape, dtype, device or value does not fit:
            "gated_conv_step_: <what must hold> (got <what came>)".
    """
    return torch.ops.dyncp.gated_conv_step_(
        *(x, history, hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw),
        **{"dilation": dilation, "residual": residual},
    )


def _checked(
    op: str, x: Tensor, history: Tensor, tensors: tuple[Tensor | None, ...], dilation: int, residual: bool
) -> tuple[Any, ...]:
    """The tensors after history, with the slopes that the caller left out, after the checks."""
    arguments: tuple[Any, ...] = tensors + (None,) * (_TENSORS - len(tensors))
    check_block(op, x, *arguments, dilation=dilation, causal=True, residual=residual, history=history)
    return arguments


def _run_reference(
    x: Tensor, history: Tensor, *tensors: Tensor | None, dilation: int = 1, residual: bool = True
) -> tuple[Tensor, Tensor]:
    arguments = _checked("gated_conv_step", x, history, tensors, dilation, residual)
    return gated_conv_step_reference(x, history, *arguments, dilation=dilation, residual=residual)


def _run_reference_in_place(
    x: Tensor, history: Tensor, *tensors: Tensor | None, dilation: int = 1, residual: bool = True
) -> Tensor:
    arguments = _checked("gated_conv_step_", x, history, tensors, dilation, residual)
    y, updated = gated_conv_step_reference(x, history, *arguments, dilation=dilation, residual=residual)
    history.copy_(updated)
    return y


def _fake(
    x: Tensor, history: Tensor, *tensors: Tensor | None, dilation: int = 1, residual: bool = True
) -> tuple[Tensor, Tensor]:
    arguments = _checked("gated_conv_step", x, history, tensors, dilation, residual)
    return x.new_empty(x.shape[0], arguments[6].shape[0]), x.new_empty(history.shape)


def _fake_in_place(
    x: Tensor, history: Tensor, *tensors: Tensor | None, dilation: int = 1, residual: bool = True
) -> Tensor:
    arguments = _checked("gated_conv_step_", x, history, tensors, dilation, residual)
    return x.new_empty(x.shape[0], arguments[6].shape[0])


register_reference("gated_conv_step", _run_reference)
register_reference("gated_conv_step_", _run_reference_in_place)
torch.library.register_fake("dyncp::gated_conv_step", _fake, lib=LIBRARY)
torch.library.register_fake("dyncp::gated_conv_step_", _fake_in_place, lib=LIBRARY)
register_autocast("gated_conv_step")
register_autocast("gated_conv_step_", written=1)
refuse_gradient("gated_conv_step", "gated_conv")
refuse_gradient("gated_conv_step_", "gated_conv")
