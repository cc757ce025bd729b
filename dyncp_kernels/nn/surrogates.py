"""Binary decisions with a surrogate gradient: Heaviside forward, something smooth backward.

Source of the idea: "Scalable Speech Enhancement with Dynamic Channel Pruning" (arXiv 2412.17121), which trains its
binary gates with surrogate gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SURROGATES", "binarize", "gumbel", "sigmoid", "straight_through"]


def _hard_forward_soft_backward(hard: Tensor, soft: Tensor) -> Tensor:
    # soft - soft.detach() is exactly zero, so the forward value stays exactly 0 or 1.
    return hard + (soft - soft.detach())


def straight_through(scores: Tensor, slope: float = 1.0) -> Tensor:
    """Heaviside forward; backward is the identity, scaled by ``slope``.

    Args:
        scores: any shape, floating point.
        slope: factor on the gradient.

    Returns:
        Tensor of the same shape and dtype, exactly 1 where ``scores > 0`` and exactly 0 elsewhere.
    """
    return _hard_forward_soft_backward((scores > 0).to(scores.dtype), scores * slope)


def sigmoid(scores: Tensor, slope: float = 2.0) -> Tensor:
    """Heaviside forward; backward is the derivative of ``sigmoid(slope * scores)``.

    Args:
        scores: any shape, floating point.
        slope: steepness of the sigmoid; larger confines the gradient to scores nearer 0.

    Returns:
        Tensor of the same shape and dtype, exactly 1 where ``scores > 0`` and exactly 0 elsewhere.
    """
    return _hard_forward_soft_backward((scores > 0).to(scores.dtype), torch.sigmoid(slope * scores))


def gumbel(scores: Tensor, slope: float = 1.0) -> Tensor:
    """Straight-through binary Gumbel-softmax (binary concrete): a sampled decision with a smooth gradient.

    The difference of two Gumbel variables is logistic, so ``P(gate = 1) = sigmoid(scores)``. Draw from torch's
    global generator; meant for training only (evaluation thresholds the scores at 0).

    Args:
        scores: any shape, floating point; read as logits.
        slope: inverse temperature of the relaxation used for the gradient.

    Returns:
        Tensor of the same shape and dtype with values exactly 0 or 1.
    """
    uniform = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
    noisy = scores + torch.log(uniform) - torch.log1p(-uniform)
    return _hard_forward_soft_backward((noisy > 0).to(scores.dtype), torch.sigmoid(slope * noisy))


SURROGATES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "straight_through": straight_through,
    "sigmoid": sigmoid,
    "gumbel": gumbel,
}


def binarize(scores: Tensor, surrogate: str = "sigmoid", slope: float = 2.0) -> Tensor:
    """Binarise ``scores`` with the surrogate of that name.

    Raises:
        ValueError: ``surrogate`` is not one of :data:`SURROGATES`.
    """
    if surrogate not in SURROGATES:
        raise ValueError(f"binarize: surrogate must be one of {sorted(SURROGATES)} (got {surrogate!r})")
    return SURROGATES[surrogate](scores, slope)
