"""The engines of this package: the streaming engine and the clip engine.

Masks that a workload wants are what the gate networks really decide: in a stream their last biases are set before each
frame, offline their decision is replaced after it was made. So their whole cost is in the time.
"""

# ruff: noqa: D102 (the methods are described in Run)
from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyncp_kernels.audio.stream import StreamingEnhancer
from dyncp_kernels.bench.engines.interface import Run
from dyncp_kernels.bench.engines.tap_rings import frame_rows
from dyncp_kernels.bench.workload import HopWorkload, Workload
from dyncp_kernels.clip_engine import ClipEngine
from dyncp_kernels.engine import PackedModel, StreamEngine
from dyncp_kernels.nn.block import BlockGates

__all__ = ["EnhancerStream", "HopStream", "Offline", "PlacedGates", "Stream", "Together"]

Array = NDArray[np.float32]

# Far above any score, and such that the biases of all gates of a network are different float32 numbers.
_KEEP = 2.0**20


class PlacedGates:
    """A packed copy of a gated network whose gates can be set from outside.

    Args:
        work: the gated workload.
        precision: of the packed weights.

    Attributes:
        model: the packed copy.
        index: of each gate's bias among the float32 numbers of the packed model, (blocks * gates,).
        biases: for every frame the biases that make the gates decide what the workload wants, (frames, blocks * gates).
    """

    def __init__(self, work: Workload, precision: str):
        network = copy.deepcopy(work.network)
        marks = _KEEP + np.arange(sum(block.gate.gates for block in network.blocks))  # type: ignore[union-attr,misc]
        start = 0
        for block in network.blocks:
            gate: Any = block.gate
            own = marks[start : start + gate.gates]
            # In the order of the biases that they replace, by which the engine orders channels.
            own[np.argsort(gate.expand.bias.numpy(), kind="stable")] = own.copy()
            gate.expand.bias.copy_(torch.from_numpy(own))
            start += gate.gates
        self.model = PackedModel(network, precision)
        self._floats = self.model.tensor.view(torch.float32).numpy()
        order = np.argsort(self._floats, kind="stable")
        self.index = order[np.searchsorted(self._floats, marks.astype(np.float32), sorter=order)]
        if not np.array_equal(self._floats[self.index], marks):
            raise RuntimeError("PlacedGates: the packed model must hold every gate's bias (got a layout without them)")
        kept = np.concatenate([_joined(gates) for gates in work.gates])
        self.biases = np.ascontiguousarray(np.where(kept, _KEEP, -_KEEP).astype(np.float32).T)

    def place(self, frame: int) -> None:
        """Make the next step decide as the workload wants at ``frame``."""
        self._floats[self.index] = self.biases[frame]


def _joined(gates: BlockGates) -> NDArray[np.bool_]:
    """Gates of one clip in the order of the gate network, (gates, frames)."""
    return np.concatenate([site[0].numpy() for site in (gates.out, gates.hidden) if site is not None])


class Stream(Run):
    """One frame of features a call."""

    def __init__(self, work: Workload, threads: int, precision: str = "float32"):
        torch.set_num_threads(threads)
        self.placed = PlacedGates(work, precision) if work.source != "none" else None
        self.engine = StreamEngine(work.network if self.placed is None else self.placed.model, precision)
        self._frames = self._inputs(work)
        self._out = torch.empty_like(self._frames[0])
        self._step: Any = self.engine.step

    def _inputs(self, work: Workload) -> list[Tensor]:
        return [torch.from_numpy(row) for row in frame_rows(work)]

    def reset(self) -> None:
        self.engine.reset()

    def place_gates(self, frame: int) -> None:
        if self.placed is not None:
            self.placed.place(frame)

    def __call__(self, frame: int) -> None:
        self._step(self._frames[frame], self._out)

    def mask(self) -> Array:
        return self._out.flatten().numpy().copy()


class Together(Run):
    """Some frames of each stream a call; gates are what the gate networks decide."""

    def __init__(self, work: Workload, threads: int, frames: int = 1):
        torch.set_num_threads(threads)
        self._engine = StreamEngine(work.network, streams=work.batch)
        parts = work.features.transpose(1, 2).split(frames, 1)
        self._chunks = [part.contiguous() for part in parts if part.shape[1] == frames]
        self._out = torch.empty_like(self._chunks[0])

    def reset(self) -> None:
        self._engine.reset()

    def __call__(self, frame: int) -> None:
        self._engine.step(self._chunks[frame], self._out)

    def mask(self) -> Array:
        return self._out.transpose(1, 2).numpy().copy()


class HopStream(Stream):
    """One hop of samples a call; ``mask`` gives the enhanced hop."""

    def __init__(self, work: HopWorkload, threads: int, precision: str = "float32"):
        super().__init__(work, threads, precision)
        self._step = self.engine.push_hop

    def _inputs(self, work: Workload) -> list[Tensor]:
        assert isinstance(work, HopWorkload)
        return [hop.contiguous() for hop in work.samples.unfold(0, work.config.hop, work.config.hop)]


class EnhancerStream(HopStream):
    """The same through ``StreamingEnhancer``, which takes samples in pieces of any length and checks them."""

    def __init__(self, work: HopWorkload, threads: int):
        super().__init__(work, threads)
        self._enhancer = StreamingEnhancer(self.engine.model)

    def reset(self) -> None:
        self._enhancer.reset()

    def __call__(self, frame: int) -> None:
        self._out = self._enhancer.push(self._frames[frame])


class Offline(Run):
    """Whole clips a call."""

    def __init__(self, work: Workload, threads: int):
        torch.set_num_threads(threads)
        self._engine = ClipEngine(work.network)
        self._features = work.features
        self._gates = self._engine.packed(list(work.gates)) if work.source != "none" else None

    @torch.inference_mode()
    def __call__(self, frame: int) -> None:
        if self._gates is None:
            self._mask: Any = self._engine(self._features)
        else:
            self._mask = self._engine.run_with_gates(self._features, self._gates)

    def mask(self) -> Array:
        return self._mask.numpy().copy()
