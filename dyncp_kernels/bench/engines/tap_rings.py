"""Depthwise histories as rings of rows, for engines that read earlier frames where they were written."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels.bench.engines.interface import flat_gates
from dyncp_kernels.bench.workload import Workload
from dyncp_kernels.nn.config import ConvFSENetConfig

__all__ = ["TapRings", "frame_rows", "gate_rows"]

Array = NDArray[np.float32]


class TapRings:
    """The ring of each block, and which row is which input or output of ``stream_graph`` at each position.

    Args:
        config: geometry.
        streams: rows of each place.

    Attributes:
        positions: arrays by name, for frame t at index t % len(positions).
    """

    def __init__(self, config: ConvFSENetConfig, streams: int = 1):
        dilations = list(config.dilations) * config.stacks
        sizes = [(config.kernel_size - 1) * dilation + 1 for dilation in dilations]
        self._rings = [[np.zeros((streams, config.hidden), np.float32) for _ in range(size)] for size in sizes]
        self.positions: list[dict[str, Array]] = []
        for t in range(math.lcm(*sizes)):
            arrays = {}
            for i, (ring, dilation) in enumerate(zip(self._rings, dilations)):
                arrays[f"b{i}_u"] = ring[t % len(ring)]
                for k in range(config.kernel_size - 1):
                    arrays[f"b{i}_tap{k}"] = ring[(t - (config.kernel_size - 1 - k) * dilation) % len(ring)]
            self.positions.append(arrays)

    def clear(self) -> None:
        """Zeros, as before the first frame."""
        for ring in self._rings:
            for row in ring:
                row.fill(0)


def frame_rows(work: Workload) -> list[Array]:
    """The frames of a workload, (batch, bins) each."""
    return [np.ascontiguousarray(rows) for rows in work.features.permute(2, 0, 1).numpy()]


def gate_rows(work: Workload) -> list[Array] | None:
    """The gates of each frame, (batch, all) each, or None without gates."""
    if work.source == "none":
        return None
    return [np.ascontiguousarray(rows) for rows in flat_gates(work.gates).transpose(2, 0, 1)]
