"""Streams in engines that run a graph on arrays that they were given beforehand."""

# ruff: noqa: D102 (the methods are described in Run)
from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels.bench.engines.interface import Run
from dyncp_kernels.bench.engines.tap_rings import TapRings, frame_rows, gate_rows
from dyncp_kernels.bench.workload import Workload
from dyncp_kernels.nn.config import ConvFSENetConfig

__all__ = ["GraphChunks", "GraphStream", "TapWindows"]

Array = NDArray[np.float32]
# Makes what runs a graph on these arrays by name, in place.
Prepare = Callable[[dict[str, Array]], Callable[[], object]]


class GraphStream(Run):
    """One frame of each stream a call; the depthwise histories stay where the last frames wrote them.

    There is one prepared run for each position of the rings of histories.

    Args:
        work: the workload.
        prepare: for ``stream_graph``.
    """

    def __init__(self, work: Workload, prepare: Prepare):
        self._frames = frame_rows(work)
        self._gates = gate_rows(work)
        self._input, self._mask = np.zeros_like(self._frames[0]), np.zeros_like(self._frames[0])
        self._rings = TapRings(work.config, work.batch)
        fixed = {"features": self._input, "mask": self._mask}
        if self._gates is not None:
            self._gate_input = np.zeros_like(self._gates[0])
            fixed["gates"] = self._gate_input
        self._runs = [prepare({**fixed, **arrays}) for arrays in self._rings.positions]
        self.buffers = len(self._runs)
        self.reset()

    def reset(self) -> None:
        self._rings.clear()
        self._position = 0

    def __call__(self, frame: int) -> None:
        np.copyto(self._input, self._frames[frame])
        if self._gates is not None:
            np.copyto(self._gate_input, self._gates[frame])
        self._runs[self._position]()
        self._position = (self._position + 1) % len(self._runs)

    def mask(self) -> Array:
        return self._mask.copy()


class GraphChunks(Run):
    """Some frames a call, without gates.

    Args:
        work: the workload.
        frames: of a call.
        prepare: for ``stream_graph``.
    """

    def __init__(self, work: Workload, frames: int, prepare: Prepare):
        rows = np.ascontiguousarray(work.features[0].T.numpy())
        self._chunks = [rows[start : start + frames] for start in range(0, len(rows) - frames + 1, frames)]
        self._input, self._mask = np.zeros_like(self._chunks[0]), np.zeros_like(self._chunks[0])
        self._windows = TapWindows(work.config, frames)
        fixed = {"features": self._input, "mask": self._mask}
        self._runs = [prepare({**fixed, **arrays}) for arrays in self._windows.positions]
        self.buffers = len(self._runs)
        self.reset()

    def reset(self) -> None:
        self._windows.clear()
        self._position = 0

    def __call__(self, frame: int) -> None:
        if self._position == len(self._runs):
            self._windows.start_again()
            self._position = 0
        np.copyto(self._input, self._chunks[frame])
        self._runs[self._position]()
        self._position += 1

    def mask(self) -> Array:
        return self._mask.T.copy()


class TapWindows:
    """The depthwise inputs of each block in a buffer that is written from start to end, chunk after chunk.

    Attributes:
        positions: the inputs and outputs of ``stream_graph`` by name, for the chunks between two calls of
            :meth:`start_again`.
    """

    _CHUNKS = 32

    def __init__(self, config: ConvFSENetConfig, frames: int):
        dilations = list(config.dilations) * config.stacks
        self._reaches = [(config.kernel_size - 1) * dilation for dilation in dilations]
        self._rows = [np.zeros((r + self._CHUNKS * frames, config.hidden), np.float32) for r in self._reaches]
        self.positions: list[dict[str, Array]] = []
        for start in range(0, self._CHUNKS * frames, frames):
            arrays = {}
            for i, (rows, dilation) in enumerate(zip(self._rows, dilations)):
                last = config.kernel_size - 1
                arrays[f"b{i}_u"] = rows[start + last * dilation :][:frames]
                for k in range(last):
                    arrays[f"b{i}_tap{k}"] = rows[start + k * dilation :][: min((last - k) * dilation, frames)]
            self.positions.append(arrays)

    def start_again(self) -> None:
        """After the last position: what the first one reads."""
        for rows, reach in zip(self._rows, self._reaches):
            rows[:reach] = rows[len(rows) - reach :]

    def clear(self) -> None:
        """Zeros, as before the first frame."""
        for rows in self._rows:
            rows.fill(0)
