"""Pooling over time, in front of a gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["POOLINGS", "pool_over_time"]

POOLINGS = ("average", "exponential", "window", "centred", "global")

_CHUNK = 256


def pool_over_time(x: Tensor, kind: str, window: int) -> Tensor:
    """Pool ``x`` (..., T) to the same shape.

    For an input x_0 .. x_{T-1} the pooled p_t is

    - ``average``: mean of x_0 .. x_t;
    - ``exponential``: p_t = p_{t-1} + a (x_t - p_{t-1}), a = 2 / (window + 1), p_{-1} = x_0;
    - ``window``: mean of the last ``min(t + 1, window)`` frames;
    - ``centred``: mean of the frames of a centred window that exist (not causal);
    - ``global``: mean of all frames, at every t (not causal).

    Args:
        x: any shape, frames last.
        kind: one of the names above.
        window: in frames, for ``exponential``, ``window`` and ``centred``.
    """
    frames = x.shape[-1]
    if x.numel() == 0:
        return x
    if kind == "global":
        return x.mean(-1, keepdim=True).expand_as(x)
    if kind == "average":
        return x.cumsum(-1) / torch.arange(1, frames + 1, device=x.device, dtype=x.dtype)
    if kind == "exponential":
        return _exponential(x, 2.0 / (window + 1))
    left = window - 1 if kind == "window" else window // 2
    right = window - 1 - left
    padded = F.pad(x, (left, right)).reshape(1, -1, left + frames + right)
    total = F.avg_pool1d(padded, window, stride=1).reshape(x.shape) * window
    t = torch.arange(frames, device=x.device)
    count = (t + right).clamp(max=frames - 1) - (t - left).clamp(min=0) + 1
    return total / count.to(x.dtype)


def _exponential(x: Tensor, rate: float) -> Tensor:
    # The recursion as a product with a lower triangular Toeplitz matrix, a chunk of frames at a time.
    keep = 1.0 - rate
    chunk = min(_CHUNK, x.shape[-1])
    t = torch.arange(chunk, device=x.device)
    age = (t[None, :] - t[:, None]).to(x.dtype)  # (source, target)
    kernel = torch.where(age >= 0, rate * keep ** age.clamp(min=0), age.new_zeros(()))
    fade = keep ** (t + 1).to(x.dtype)
    carry = x[..., :1]
    pooled = []
    for start in range(0, x.shape[-1], chunk):
        part = x[..., start : start + chunk]
        n = part.shape[-1]
        pooled.append(part @ kernel[:n, :n] + carry * fade[:n])
        carry = pooled[-1][..., -1:]
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, -1)
