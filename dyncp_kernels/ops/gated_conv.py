"""The gated depthwise-separable block as one op: public function, fake, gradient, autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dyncp_kernels.ops._checks import Check, check_block, check_grad, refuse_tangents
from dyncp_kernels.ops._registration import LIBRARY, register_autocast, register_reference
from dyncp_kernels.ops.reference import gated_conv_reference

# Arguments that have a gradient, in the order of the results of gated_conv_backward; bit i of `wanted` asks for the
# i-th of them.
_DIFFERENTIABLE = (
    *("x", "hidden_gate", "out_gate", "w_in", "b_in", "w_dw", "b_dw", "w_out", "b_out"),
    *("slope_in", "slope_dw"),
)


def gated_conv(
    x: Tensor,
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
    causal: bool = True,
    residual: bool = True,
) -> Tensor:
    r"""A depthwise-separable block whose pruned channels are neither read nor computed.

    .. math::
        u = m_h \cdot act(W_{in} x + b_{in}), \quad
        z = m_h \cdot act(DW_d(u) + b_{dw}), \quad
        y = x + m_o \cdot (W_{out} z + b_{out})

    with :math:`act` a PReLU of one slope, or ReLU where the slope is None, and :math:`DW_d` the depthwise
    cross-correlation with dilation :math:`d`, padded with zeros.  Without ``w_in`` the block has no expansion and no
    first activation: :math:`u = m_h \cdot x`.  At a frame where all of :math:`m_h` is 0 the whole branch is skipped,
    ``b_out`` included: :math:`y = x`.

    The block, its gates and their two sites are those of "Scalable Speech Enhancement with Dynamic Channel Pruning"
    (Miccini et al., ICASSP 2025, arXiv 2412.17121).

    Gates select: the weights of a channel that is pruned (gate False, or exactly 0) at all frames of a batch item may
    hold anything, NaN included.  A floating-point gate also multiplies and has a gradient (surrogate training); the
    skipping of whole frames has none.

    Args:
        x: input (B, C, T); float32, float64, float16 or bfloat16.  The 16-bit types accumulate in float32;
            on GPUs the hidden activations are rounded to them between products.
        hidden_gate: :math:`m_h`, (B, H, T) or (B, H, 1), bool or the dtype of x; None keeps all channels.
        out_gate: :math:`m_o`, (B, Co, T) or (B, Co, 1), bool or the dtype of x; None keeps all channels.
        w_in: 1x1 expansion (H, C), or None for none (then H = C).
        b_in: its bias (H,), or None.
        w_dw: depthwise filters (H, K); tap K - 1 multiplies the newest frame.
        b_dw: their bias (H,), or None.
        w_out: 1x1 projection (Co, H).
        b_out: its bias (Co,), or None.
        slope_in: PReLU slope of the first activation, one element; None for ReLU.
        slope_dw: PReLU slope of the second activation, one element; None for ReLU.
        dilation: frames between neighbouring taps.
        causal: pad (K - 1) * dilation zeros on the left; otherwise half of them on each side.
        residual: add x (needs Co = C).

    Returns:
        y (B, Co, T), in the dtype of x.

    Raises:
        RuntimeError: a shape, dtype, device or value does not fit: "gated_conv: <what must hold> (got <what came>)".
            So does a tangent: there are derivatives in reverse mode only.
    """
    tensors = (x, hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw)
    refuse_tangents("gated_conv", *tensors)
    return _OP(*tensors, dilation=dilation, causal=causal, residual=residual)


def _run_reference(
    x: Tensor, *tensors: Tensor | None, dilation: int = 1, causal: bool = True, residual: bool = True
) -> Tensor:
    arguments = _filled(tensors)
    check_block("gated_conv", x, *arguments, dilation=dilation, causal=causal, residual=residual)
    return gated_conv_reference(x, *arguments, dilation=dilation, causal=causal, residual=residual)


def _run_reference_backward(
    grad: Tensor,
    x: Tensor,
    *tensors: Tensor | None,
    dilation: int = 1,
    causal: bool = True,
    residual: bool = True,
    wanted: int = 2047,
) -> tuple[Tensor, ...]:
    arguments = _filled(tensors)
    check_block("gated_conv_backward", x, *arguments, dilation=dilation, causal=causal, residual=residual)
    check_grad("gated_conv_backward", grad, x, arguments[6])
    inputs: list[Any] = [None if tensor is None else tensor.detach() for tensor in (x, *arguments)]
    needed = [
        tensor.requires_grad_()
        for i, tensor in enumerate(inputs)
        if tensor is not None and tensor.is_floating_point() and wanted >> i & 1
    ]
    with torch.enable_grad():
        y = gated_conv_reference(*inputs, dilation=dilation, causal=causal, residual=residual)
    if y.requires_grad:
        gradients = iter(torch.autograd.grad(y, needed, grad, allow_unused=True, materialize_grads=True))
    else:
        gradients = iter([torch.zeros_like(tensor) for tensor in needed])
    return tuple(
        next(gradients) if tensor is not None and tensor.requires_grad else x.new_empty(0) for tensor in inputs
    )


def _filled(tensors: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """The tensors after x, with the slopes that the caller left out."""
    return tensors + (None,) * (len(_DIFFERENTIABLE) - 1 - len(tensors))


register_reference("gated_conv", _run_reference)
register_reference("gated_conv_backward", _run_reference_backward)


def _fake(x: Tensor, *tensors: Tensor | None, dilation: int = 1, causal: bool = True, residual: bool = True) -> Tensor:
    arguments = _filled(tensors)
    check_block("gated_conv", x, *arguments, dilation=dilation, causal=causal, residual=residual)
    return x.new_empty(x.shape[0], arguments[6].shape[0], x.shape[2])


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    *tensors: Tensor | None,
    dilation: int = 1,
    causal: bool = True,
    residual: bool = True,
    wanted: int = 2047,
) -> tuple[Tensor, ...]:
    arguments = _filled(tensors)
    check_block("gated_conv_backward", x, *arguments, dilation=dilation, causal=causal, residual=residual)
    check_grad("gated_conv_backward", grad, x, arguments[6])
    return tuple(
        x.new_empty(tensor.shape)
        if tensor is not None and tensor.is_floating_point() and wanted >> i & 1
        else x.new_empty(0)
        for i, tensor in enumerate((x, *arguments))
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = dict(keyword_only_inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Autograd would take the gradients for constants, and second derivatives for zero.
    Check("gated_conv")(
        not torch.is_grad_enabled(),
        "create_graph must be False, because the op has no second derivatives; gated_conv_reference has them",
        True,
    )
    needed = ctx.needs_input_grad[: len(_DIFFERENTIABLE)]
    wanted = sum(1 << i for i, need in enumerate(needed) if need)
    gradients = torch.ops.dyncp.gated_conv_backward(grad, *ctx.saved_tensors, **ctx.options, wanted=wanted)
    return tuple(gradient if need else None for gradient, need in zip(gradients, needed))


torch.library.register_fake("dyncp::gated_conv", _fake, lib=LIBRARY)
torch.library.register_fake("dyncp::gated_conv_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("dyncp::gated_conv", _backward, setup_context=_setup_context, lib=LIBRARY)
register_autocast("gated_conv")

# Found once: looking it up costs a third of a short call.
_OP = torch.ops.dyncp.gated_conv.default
