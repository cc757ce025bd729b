"""What every engine gives the measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dyncp_kernels.bench.workload import Workload
from dyncp_kernels.nn.block import BlockGates

__all__ = ["Engine", "Run", "flat_gates"]


class Run(ABC):
    """A prepared engine. Everything that can be done once is done; a call does what every frame or batch needs.

    Attributes:
        buffers: sets of buffers that calls use in turn; only after as many calls do the caches hold them all.
    """

    buffers: int = 0

    def reset(self) -> None:  # noqa: B027
        """Forget the stream so far."""

    def place_gates(self, frame: int) -> None:  # noqa: B027
        """Before the call, untimed: make the gate networks decide what the workload wants at that frame."""

    @abstractmethod
    def __call__(self, frame: int) -> None:
        """Process that frame of the workload, or that chunk of frames; offline, the whole workload."""

    @abstractmethod
    def mask(self) -> NDArray[np.float32]:
        """What the last call computed: (batch, bins, frames), in a stream without dimensions of size 1 if need be."""


@dataclass(frozen=True)
class Engine:
    """An engine under its name in the results.

    Attributes:
        name: unique.
        stream: prepares one frame a call, from the workload and the number of threads; None where it cannot.
        offline: prepares whole clips a call; None where it cannot.
        chunks: prepares some frames of a stream a call, how many is the third argument; None where it cannot.
        streams: prepares one frame a call of each clip of the workload; None where it cannot.
        reduced: gives what prepares one frame a call with narrower weights, by dtype; None where it cannot.
        gated: whether it takes workloads with gates.
        modules: what must be installed.
        slow_start: whether preparing it takes longer than a quick run allows.
    """

    name: str
    stream: Callable[[Workload, int], Run] | None = None
    offline: Callable[[Workload, int], Run] | None = None
    chunks: Callable[[Workload, int, int], Run] | None = None
    streams: Callable[[Workload, int], Run] | None = None
    reduced: Callable[[], Mapping[str, Callable[[Workload, int], Run]]] | None = None
    gated: bool = False
    modules: tuple[str, ...] = ()
    slow_start: bool = False


def flat_gates(gates: Iterable[BlockGates]) -> NDArray[np.float32]:
    """All blocks' gates as 0 and 1 side by side, (batch, all, frames): per block out, hidden, any hidden."""
    parts = []
    for hidden, out in gates:
        if out is not None:
            parts.append(out)
        if hidden is not None:
            parts.extend((hidden, hidden.any(1, keepdim=True)))
    return torch.cat(parts, 1).float().numpy()
