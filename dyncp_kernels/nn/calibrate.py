"""Run-time budget: from a wished share of kept channels to a shift of the gate scores, calibrated on data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyncp_kernels.nn.conv_fsenet import ConvFSENet

__all__ = ["calibrate", "shift_for_budget"]

_LARGEST_SHIFT = 100.0  # scores are of order 1; what stays closed here was never trained to open
_GROWTH = 1.5
_CLOSE = 0.01
_HALVINGS = 6
_USAGES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)


@torch.no_grad()
def calibrate(
    model: ConvFSENet, features: Sequence[Tensor], usages: Sequence[float] = _USAGES
) -> list[tuple[float, float]]:
    """Measure which shift of the gate scores gives which usage.

    A mask changes the input of later blocks, so usage is measured by running the network at each shift; the shifts to
    try come from the quantiles of the scores at shift 0, and from halving where these missed a usage.

    Args:
        model: a gated network.
        features: clips (1, bins, T) that stand for the data.
        usages: shares of kept channels to aim at.

    Returns:
        Pairs (usage, shift), both rising, the point (usage, 0.0) included. The last usage may be well below 1: a
        network whose training closed channels for good closes others when they are forced open.

    Raises:
        ValueError: the model has no gates or there is no clip.
    """
    if model.config.site == "none":
        raise ValueError("calibrate: the model must have gates (got site 'none')")
    if not features:
        raise ValueError("calibrate: at least one clip is needed (got none)")
    was_training = model.training
    model.eval()
    scores: list[Tensor] = []
    gates = [block.gate for block in model.blocks if block.gate is not None]
    hooks = [gate.register_forward_pre_hook(_collector(scores)) for gate in gates]
    try:
        for clip in features:
            model(clip)
    finally:
        for hook in hooks:
            hook.remove()
    levels = np.quantile(torch.cat(scores).numpy(), [1.0 - u for u in usages])
    points = [(_usage(model, features, shift), shift) for shift in sorted({0.0, *(-float(v) for v in levels)})]
    # Channels that open early change the scores of later blocks, often downwards, so the last quantile may be far from
    # opening all of them; some networks never open all.
    shift = max(abs(points[-1][1]), 1.0)
    while points[-1][0] < max(usages) and shift < _LARGEST_SHIFT:
        shift *= _GROWTH
        points.append((_usage(model, features, shift), shift))
    for wished in usages:
        _approach(model, features, wished, points)
    model.train(was_training)
    rising: list[tuple[float, float]] = []
    for usage, shift in points:
        if not rising or usage > rising[-1][0]:
            rising.append((usage, shift))
    return rising


def _approach(model: ConvFSENet, features: Sequence[Tensor], wished: float, points: list[tuple[float, float]]) -> None:
    """Halve the distance of the shifts around a usage until one of them is close to it; shifts stay in order."""
    for _ in range(_HALVINGS):
        above = next((i for i, (usage, _) in enumerate(points) if usage >= wished), 0)
        if above == 0 or min(abs(usage - wished) for usage, _ in points) <= _CLOSE:
            return
        shift = 0.5 * (points[above - 1][1] + points[above][1])
        points.insert(above, (_usage(model, features, shift), shift))


def _collector(scores: list[Tensor]) -> Callable[[Any, tuple[Tensor, ...]], None]:
    def collect(gate: Any, args: tuple[Tensor, ...]) -> None:
        # A thousand draws per gate and clip are plenty for quantiles.
        flat = gate.scores(args[0]).flatten()
        scores.append(flat[:: max(len(flat) // 1000, 1)])

    return collect


def _usage(model: ConvFSENet, features: Sequence[Tensor], shift: float) -> float:
    kept, total = 0.0, 0
    for clip in features:
        _, gates = model(clip, shift=shift, return_gates=True)
        for site in (s for block in gates for s in block if s is not None):
            full = site.expand(*site.shape[:2], clip.shape[-1])
            kept += float(full.sum(dtype=torch.float64))
            total += full.numel()
    return kept / max(total, 1)


def shift_for_budget(calibration: Sequence[tuple[float, float]], budget: float | None) -> float:
    """Shift of the gate scores for a wished share of kept channels, interpolated and held at the ends.

    Args:
        calibration: from :func:`calibrate`, kept in ``model.calibration``.
        budget: share of channels to keep, 0 to 1; None for the trained operating point (shift 0).

    Raises:
        ValueError: the budget is no share, or there is no calibration.
    """
    if budget is None:
        return 0.0
    if not 0 <= budget <= 1:
        raise ValueError(f"shift_for_budget: budget must be between 0 and 1 (got {budget})")
    if not calibration:
        raise ValueError("shift_for_budget: a budget needs a calibrated gated model (got one without calibration)")
    usages, shifts = zip(*calibration)
    return float(np.interp(budget, usages, shifts))
