"""Narrower dense networks: what a pruned one has to beat at equal MACs and at equal measured time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.macs import macs_per_frame

__all__ = ["WIDTH_STEP", "dense_config", "width_of_equal_macs", "width_of_equal_time"]

WIDTH_STEP = 8


def dense_config(config: ConvFSENetConfig, hidden: int) -> ConvFSENetConfig:
    """The network without gates and with blocks of ``hidden`` channels."""
    return replace(config, site="none", hidden=hidden)


def width_of_equal_macs(config: ConvFSENetConfig, macs: float) -> int:
    """Hidden width of the dense network whose MACs per frame are nearest to ``macs``, at least 1."""
    none, one = (macs_per_frame(dense_config(config, 1), hidden_kept=kept) for kept in (0, 1))
    return max(1, round((macs - none) / (one - none)))


def width_of_equal_time(times: Mapping[int, float], target: float) -> int:
    """Hidden width of a dense network that takes ``target``, by interpolation between measured widths.

    Args:
        times: measured time by hidden width.
        target: in the same unit.

    Returns:
        A multiple of :data:`WIDTH_STEP`, inside the range of the measured widths.
    """
    widths = sorted(times)
    # Noise must not turn a wider network into a faster one.
    rising = np.maximum.accumulate([times[width] for width in widths])
    wished = float(np.interp(target, rising, widths))
    steps = round(wished / WIDTH_STEP)
    return int(np.clip(steps, -(-widths[0] // WIDTH_STEP), widths[-1] // WIDTH_STEP)) * WIDTH_STEP
