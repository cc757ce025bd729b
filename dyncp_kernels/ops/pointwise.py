"""A 1x1 convolution with bias and activation as one op: public function, reference, fake, gradient, autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dyncp_kernels.ops._checks import Check, check_kernel_dtype, check_like, refuse_tangents
from dyncp_kernels.ops._registration import LIBRARY, register_autocast, register_plain

_ACTIVATIONS = ("none", "relu", "sigmoid")


def pointwise(x: Tensor, w: Tensor, b: Tensor | None, activation: str = "none") -> Tensor:
    r"""A 1x1 convolution: :math:`y = act(W x + b)`.

    Args:
        x: input (B, C, T); float32, float64, float16 or bfloat16. The 16-bit types accumulate in float32.
        w: (Co, C).
        b: (Co,), or None.
        activation: ``none``, ``relu`` or ``sigmoid``.

    Returns:
        y (B, Co, T), in the dtype of x.

    Raises:
        RuntimeError: a shape, dtype, device or value does not fit: "pointwise: <what must hold> (got <what came>)".
            So does a tangent: there are derivatives in reverse mode only.
    """
    refuse_tangents("pointwise", x, w, b)
    return _OP(x, w, b, activation)


def pointwise_reference(x: Tensor, w: Tensor, b: Tensor | None, activation: str = "none") -> Tensor:
    """The convolution in plain PyTorch; see :func:`pointwise`."""
    compute = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    y = torch.matmul(w.to(compute), x.to(compute))
    if b is not None:
        y = y + b.to(compute)[:, None]
    activated = torch.relu(y) if activation == "relu" else torch.sigmoid(y) if activation == "sigmoid" else y
    return activated.to(x.dtype)


def _check(x: Tensor, w: Tensor, b: Tensor | None, activation: str) -> None:
    check = Check("pointwise")
    check_kernel_dtype(check, x)
    check_like(check, x, w=w, b=b)
    check(x.dim() == 3, "x must have shape (batch, channels, frames)", x)
    fits = w.dim() == 2 and w.shape[1] == x.shape[1]
    check(fits, "w must have shape (out_channels, {})", w, x.shape[1])
    if b is not None:
        check(b.dim() == 1 and b.shape[0] == w.shape[0], "b must have shape [{}]", b, w.shape[0])
    check(activation in _ACTIVATIONS, "activation must be one of {}", activation, ", ".join(_ACTIVATIONS))


def _run_reference(x: Tensor, w: Tensor, b: Tensor | None, activation: str = "none") -> Tensor:
    _check(x, w, b, activation)
    return pointwise_reference(x, w, b, activation)


def _fake(x: Tensor, w: Tensor, b: Tensor | None, activation: str = "none") -> Tensor:
    _check(x, w, b, activation)
    return x.new_empty(x.shape[0], w.shape[0], x.shape[2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, ctx.activation = inputs
    ctx.save_for_backward(x, w, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w, y = ctx.saved_tensors
    if ctx.activation == "relu":
        grad = torch.where(y > 0, grad, torch.zeros_like(grad))
    elif ctx.activation == "sigmoid":
        grad = grad * y * (1 - y)
    needs_x, needs_w, needs_b = ctx.needs_input_grad[:3]
    return (
        torch.matmul(w.t(), grad) if needs_x else None,
        torch.einsum("bot,bct->oc", grad, x) if needs_w else None,
        grad.sum((0, 2)) if needs_b else None,
        None,
    )


register_plain("pointwise", _run_reference)
torch.library.register_fake("dyncp::pointwise", _fake, lib=LIBRARY)
torch.library.register_autograd("dyncp::pointwise", _backward, setup_context=_setup_context, lib=LIBRARY)
register_autocast("pointwise")

# Found once: looking it up costs a third of a short call.
_OP = torch.ops.dyncp.pointwise.default
