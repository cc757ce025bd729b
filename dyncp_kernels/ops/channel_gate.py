"""The gate network of a block as one op: public function, reference, fake, autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dyncp_kernels.ops._checks import Check, check_kernel_dtype, check_like
from dyncp_kernels.ops._registration import LIBRARY, register_autocast, register_plain
from dyncp_kernels.ops.pooling import POOLINGS, pool_over_time


def channel_gate(
    x: Tensor,
    w_reduce: Tensor,
    b_reduce: Tensor | None,
    w_expand: Tensor,
    b_expand: Tensor | None,
    *,
    pooling: str = "exponential",
    window: int = 8,
    shift: float = 0.0,
) -> Tensor:
    r"""Decide which channels of a block are computed.

    .. math::
        m = \left[ W_2 \, relu(pool(W_1 x) + b_1) + b_2 + shift > 0 \right]

    The poolings are those of :func:`dyncp_kernels.ops.pooling.pool_over_time`. The gates are those of "Scalable Speech
    Enhancement with Dynamic Channel Pruning" (Miccini et al., ICASSP 2025, arXiv 2412.17121). A decision has no
    gradient; train with :class:`dyncp_kernels.nn.gate.ChannelGate`.

    Args:
        x: input of the block (B, C, T); float32, float64, float16 or bfloat16. The 16-bit types compute in float32.
        w_reduce: :math:`W_1` (d, C).
        b_reduce: :math:`b_1` (d,), or None.
        w_expand: :math:`W_2` (G, d).
        b_expand: :math:`b_2` (G,), or None.
        pooling: ``average``, ``exponential``, ``window``, ``centred`` or ``global``.
        window: in frames, for ``exponential``, ``window`` and ``centred``.
        shift: added to the scores; positive keeps more channels.

    Returns:
        m: bool (B, G, T); (B, G, 1) for the ``global`` pooling, which decides once for all frames.

    Raises:
        RuntimeError: a shape, dtype, device or value does not fit: "channel_gate: <what must hold> (got <what came>)".
    """
    return _OP(x, w_reduce, b_reduce, w_expand, b_expand, pooling=pooling, window=window, shift=shift)


def channel_gate_reference(
    x: Tensor,
    w_reduce: Tensor,
    b_reduce: Tensor | None,
    w_expand: Tensor,
    b_expand: Tensor | None,
    *,
    pooling: str = "exponential",
    window: int = 8,
    shift: float = 0.0,
) -> Tensor:
    """The gate network in plain PyTorch; see :func:`channel_gate`."""
    compute = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    reduced = torch.matmul(w_reduce.to(compute), x.to(compute))
    if pooling == "global":
        pooled = reduced.mean(-1, keepdim=True) if x.shape[2] else reduced.new_zeros(*reduced.shape[:2], 1)
    else:
        pooled = pool_over_time(reduced, pooling, window)
    hidden = F.relu(pooled if b_reduce is None else pooled + b_reduce.to(compute)[:, None])
    scores = torch.matmul(w_expand.to(compute), hidden)
    if b_expand is not None:
        scores = scores + b_expand.to(compute)[:, None]
    return scores + shift > 0


def _check(
    x: Tensor,
    w_reduce: Tensor,
    b_reduce: Tensor | None,
    w_expand: Tensor,
    b_expand: Tensor | None,
    pooling: str,
    window: int,
) -> None:
    check = Check("channel_gate")
    check_kernel_dtype(check, x)
    check_like(check, x, w_reduce=w_reduce, b_reduce=b_reduce, w_expand=w_expand, b_expand=b_expand)
    check(x.dim() == 3, "x must have shape (batch, channels, frames)", x)
    fits = w_reduce.dim() == 2 and w_reduce.shape[1] == x.shape[1]
    check(fits, "w_reduce must have shape (width, {})", w_reduce, x.shape[1])
    width = w_reduce.shape[0]
    fits = w_expand.dim() == 2 and w_expand.shape[1] == width
    check(fits, "w_expand must have shape (gates, {})", w_expand, width)
    for name, bias, length in (("b_reduce", b_reduce, width), ("b_expand", b_expand, w_expand.shape[0])):
        if bias is not None:
            check(bias.dim() == 1 and bias.shape[0] == length, "{} must have shape [{}]", bias, name, length)
    check(window >= 1, "window must be at least 1 frame", window)
    check(pooling in POOLINGS, "pooling must be one of {}", pooling, ", ".join(POOLINGS))


def _run_reference(
    x: Tensor,
    w_reduce: Tensor,
    b_reduce: Tensor | None,
    w_expand: Tensor,
    b_expand: Tensor | None,
    *,
    pooling: str = "exponential",
    window: int = 8,
    shift: float = 0.0,
) -> Tensor:
    _check(x, w_reduce, b_reduce, w_expand, b_expand, pooling, window)
    return channel_gate_reference(
        x, w_reduce, b_reduce, w_expand, b_expand, pooling=pooling, window=window, shift=shift
    )


def _fake(
    x: Tensor,
    w_reduce: Tensor,
    b_reduce: Tensor | None,
    w_expand: Tensor,
    b_expand: Tensor | None,
    *,
    pooling: str = "exponential",
    window: int = 8,
    shift: float = 0.0,
) -> Tensor:
    _check(x, w_reduce, b_reduce, w_expand, b_expand, pooling, window)
    frames = 1 if pooling == "global" else x.shape[2]
    return x.new_empty(x.shape[0], w_expand.shape[0], frames, dtype=torch.bool)


register_plain("channel_gate", _run_reference)
torch.library.register_fake("dyncp::channel_gate", _fake, lib=LIBRARY)
register_autocast("channel_gate")

# Found once: looking it up costs a third of a short call.
_OP = torch.ops.dyncp.channel_gate.default
