"""How dynamic gates really are: gates that never change are a static pruning at a dynamic price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dyncp_kernels.nn.block import BlockGates

__all__ = ["WINDOWS", "Dynamism", "DynamismMeter", "block_masks", "measure_dynamism"]

WINDOWS = (4, 8, 16)
"""Lengths in frames of the windows whose union of kept channels is measured."""

_ALWAYS_ON = 0.99
_ALWAYS_OFF = 0.01

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Dynamism:
    """Statistics of one block's mask over all the frames that were added.

    Attributes:
        channels: gated channels.
        frames: frames seen.
        usage: share of (channel, frame) pairs that were kept.
        flips: share of gates that change from one frame to the next; NaN without two frames in one file.
        always_on: share of channels kept in more than 99 % of the frames.
        always_off: share of channels kept in less than 1 % of the frames.
        entropy: mean over channels of the binary entropy of the share of frames kept, in bits: 0 for a static mask.
        union: for 4, 8 and 16 frames, the mean share of channels kept at least once in a window of so many frames
            (windows side by side, whole ones only; NaN where no file is that long).
    """

    channels: int
    frames: int
    usage: float
    flips: float
    always_on: float
    always_off: float
    entropy: float
    union: dict[int, float]

    def row(self) -> dict[str, float]:
        """The statistics as a flat row for a table or CSV."""
        values = {name: getattr(self, name) for name in ("usage", "flips", "always_on", "always_off", "entropy")}
        return {**values, **{f"union_{window}": share for window, share in self.union.items()}}


class DynamismMeter:
    """Collects the masks of many files; each file adds one mask per block, bool (channels, frames)."""

    def __init__(self) -> None:
        self._blocks: list[_Counts] = []

    def add(self, masks: Sequence[Any]) -> None:
        """Add one file.

        Args:
            masks: per block, bool (channels, frames), numpy or torch on the CPU; frames may differ between files.

        Raises:
            ValueError: another number of blocks or channels than before, or a mask that is not 2-D.
            TypeError: a mask that is not boolean.
        """
        arrays = [np.asarray(mask) for mask in masks]
        for array in arrays:
            if array.dtype != np.bool_:
                raise TypeError(f"DynamismMeter.add: masks must be boolean (got {array.dtype})")
            if array.ndim != 2:
                raise ValueError(f"DynamismMeter.add: masks must be (channels, frames) (got {array.shape})")
        if not self._blocks:
            self._blocks = [_Counts(len(array)) for array in arrays]
        if [len(array) for array in arrays] != [block.channels for block in self._blocks]:
            raise ValueError(
                f"DynamismMeter.add: masks must have {[block.channels for block in self._blocks]} channels per block "
                f"(got {[len(array) for array in arrays]})"
            )
        for block, array in zip(self._blocks, arrays):
            block.add(array)

    def blocks(self) -> list[Dynamism]:
        """Statistics of each block.

        Raises:
            ValueError: nothing was added.
        """
        if not any(block.frames for block in self._blocks):
            raise ValueError("DynamismMeter: at least one frame of masks must be added (got none)")
        return [block.result() for block in self._blocks]

    def overall(self) -> Dynamism:
        """Statistics over the blocks, each channel weighing the same."""
        blocks = self.blocks()
        weights = np.array([block.channels for block in blocks], dtype=float)

        def mean(values: Iterable[float]) -> float:
            return float(np.average(list(values), weights=weights))

        names = ("usage", "flips", "always_on", "always_off", "entropy")
        return Dynamism(
            channels=int(weights.sum()),
            frames=blocks[0].frames,
            union={window: mean(block.union[window] for block in blocks) for window in WINDOWS},
            **{name: mean(getattr(block, name) for block in blocks) for name in names},
        )


def measure_dynamism(files: Iterable[Sequence[Any]]) -> list[Dynamism]:
    """Per-block statistics of the masks of many files; see ``DynamismMeter.add`` for a file's masks."""
    meter = DynamismMeter()
    for masks in files:
        meter.add(masks)
    return meter.blocks()


def block_masks(gates: Sequence[BlockGates], frames: int, item: int = 0) -> list[Mask]:
    """Masks of one batch item from the gates that a model returned: per block bool (channels, frames).

    Gates of both sites are stacked, output channels first, as the gate network orders them; one decision per utterance
    is repeated over the frames. A model without gates gives an empty list.
    """
    masks = []
    for block in gates:
        sites = [site[item].detach().cpu().numpy() != 0 for site in (block.out, block.hidden) if site is not None]
        if sites:
            wide = [np.broadcast_to(site, (len(site), frames)) for site in sites]
            masks.append(np.concatenate(wide))
    return masks


@dataclass
class _Counts:
    channels: int
    frames: int = 0
    kept: NDArray[np.int64] = field(init=False)
    flips: int = 0
    transitions: int = 0
    union: dict[int, int] = field(default_factory=lambda: dict.fromkeys(WINDOWS, 0))
    windows: dict[int, int] = field(default_factory=lambda: dict.fromkeys(WINDOWS, 0))

    def __post_init__(self) -> None:
        self.kept = np.zeros(self.channels, dtype=np.int64)

    def add(self, mask: Mask) -> None:
        frames = mask.shape[1]
        self.frames += frames
        self.kept += mask.sum(axis=1)
        self.flips += int(np.count_nonzero(mask[:, 1:] != mask[:, :-1]))
        self.transitions += max(frames - 1, 0)
        for window in WINDOWS:
            count = frames // window
            tiles = mask[:, : count * window].reshape(self.channels, count, window)
            self.union[window] += int(tiles.any(axis=2).sum())
            self.windows[window] += count

    def result(self) -> Dynamism:
        share = self.kept / max(self.frames, 1)
        changing = share[(share > 0) & (share < 1)]
        entropy = -(changing * np.log2(changing) + (1 - changing) * np.log2(1 - changing))
        return Dynamism(
            channels=self.channels,
            frames=self.frames,
            usage=float(share.mean()),
            flips=_ratio(self.flips, self.transitions * self.channels),
            always_on=float((share > _ALWAYS_ON).mean()),
            always_off=float((share < _ALWAYS_OFF).mean()),
            entropy=float(entropy.sum()) / self.channels,
            union={window: _ratio(self.union[window], self.windows[window] * self.channels) for window in WINDOWS},
        )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
