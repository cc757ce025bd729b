"""What L_DCP asks of each part of a batch: a share of channels to keep, and the shift of the gate scores that means it.

A network trained at one target alone loses quality when a run-time budget shifts its scores: channels that it closed
were not trained further. Training visits other budgets with the shifts that will ask for them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dyncp_kernels.training.config import GateLossConfig

__all__ = ["OperatingPoint", "operating_point"]

_LARGEST_LOGIT = 4.0


class OperatingPoint(NamedTuple):
    """Targets (parts,) of equal parts of a batch, and the shift of the gate scores (B, 1, 1) of each item."""

    targets: Tensor
    shifts: Tensor


def _logit(share: Tensor) -> Tensor:
    return share.logit(eps=1.0 / (1.0 + math.exp(_LARGEST_LOGIT)))


def operating_point(config: GateLossConfig, batch: int, step: int, generator: torch.Generator) -> OperatingPoint:
    """Targets and shifts of a training step.

    Without ``config.budgets`` the whole batch has one target and no shift. With them its first half has, and its last
    two quarters have a budget each, drawn uniformly below and above the target; it is their target, and their shift is
    by how much its logit exceeds that of the first target.

    Args:
        config: of L_DCP.
        batch: items B; with budgets a multiple of 4.
        step: training step, for the ramp.
        generator: of the budgets.
    """
    budgets = torch.tensor([config.target])
    if config.budgets is not None:
        ends = torch.tensor(config.budgets)
        drawn = config.target + (ends - config.target) * torch.rand(2, generator=generator)
        budgets = torch.cat([budgets.expand(2), drawn])
    ramp = min(step / config.ramp_steps, 1.0) if config.ramp_steps else 1.0
    targets = 1.0 + (budgets - 1.0) * ramp
    shifts = _logit(targets) - _logit(targets[:1])
    return OperatingPoint(targets, shifts.repeat_interleave(batch // len(targets))[:, None, None])
