"""An engine that finds the caches full of other data, as between the frames of a live stream."""

# ruff: noqa: D102 (the methods are described in Run)
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels.bench.engines.interface import Run

__all__ = ["ColdCaches"]


class ColdCaches(Run):
    """Before each call, untimed, reads a number of every cache line of other memory.

    Args:
        run: the engine.
        other: the memory, larger than the caches.
    """

    def __init__(self, run: Run, other: NDArray[np.int64]):
        self._run = run
        self._lines = other[:: 64 // other.itemsize]

    def reset(self) -> None:
        self._run.reset()

    def place_gates(self, frame: int) -> None:
        self._run.place_gates(frame)
        self._lines.sum()

    def __call__(self, frame: int) -> None:
        self._run(frame)

    def mask(self) -> NDArray[np.float32]:
        return self._run.mask()
