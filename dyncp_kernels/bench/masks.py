"""Masks for benchmarks: random ones, the worst case, and ones recorded from a trained model, the real case."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dyncp_kernels.evaluation.mask_files import load_masks, save_masks
from dyncp_kernels.nn.block import BlockGates
from dyncp_kernels.nn.config import ConvFSENetConfig

__all__ = ["block_gates", "find_recorded", "random_masks", "read_biases", "read_recorded", "write_recorded"]

Masks = NDArray[np.bool_]
Biases = NDArray[np.float32]

_NAME = re.compile(r"(output|hidden)_(\d{1,3})\.npz")


def random_masks(blocks: int, channels: int, frames: int, density: float, seed: int = 0) -> Masks:
    """Gates that are independent of each other and over time, each kept with probability ``density``.

    Returns:
        bool (blocks, channels, frames).
    """
    if not 0 <= density <= 1:
        raise ValueError(f"random_masks: density must be between 0 and 1 (got {density})")
    return np.random.default_rng(seed).random((blocks, channels, frames)) < density


def find_recorded(folder: str | os.PathLike[str]) -> dict[tuple[str, float], Path]:
    """The recorded masks in ``folder``, files named SITE_PERCENT.npz, by site and nominal density."""
    found = {}
    for path in sorted(Path(folder).glob("*.npz")):
        if name := _NAME.fullmatch(path.name):
            found[name[1], int(name[2]) / 100] = path
    return found


def read_recorded(path: str | os.PathLike[str], frames: int) -> Masks:
    """Recorded masks of the first ``frames`` frames, clips joined and repeated where there are fewer.

    Returns:
        bool (blocks, channels, frames).

    Raises:
        ValueError: the file holds no masks, or its blocks differ in channels.
    """
    clips = load_masks(path)
    if len({len(mask) for mask in clips[0]}) != 1:
        raise ValueError(f"{os.fspath(path)}: all blocks must have the same number of gates")
    joined = np.concatenate([np.stack(clip) for clip in clips], axis=2)
    return np.take(joined, np.arange(frames), axis=2, mode="wrap")


def read_biases(path: str | os.PathLike[str]) -> Biases | None:
    """The last biases of the gate networks that recorded masks came from, (blocks, channels); None if not kept."""
    with np.load(path, allow_pickle=False) as file:
        biases: Biases | None = file.get("biases")
        return biases


def write_recorded(
    clips: Sequence[Sequence[Masks]], path: str | os.PathLike[str], frames: int, biases: Biases | None = None
) -> None:
    """Keep about ``frames`` frames of recorded masks, the first clips whole and the last one cut, in a small file.

    Args:
        clips: per clip and block, bool (channels, frames).
        path: the file.
        frames: how many.
        biases: last biases of the gate networks, (blocks, channels), by which the engine orders channels.
    """
    kept, left = [], frames
    for clip in clips:
        if left <= 0:
            break
        kept.append([mask[:, :left] for mask in clip])
        left -= clip[0].shape[1]
    save_masks(path, kept, **({} if biases is None else {"biases": biases}))


def block_gates(config: ConvFSENetConfig, masks: Masks, batch: int, frames: int) -> list[BlockGates]:
    """Per block the gates (batch, channels, frames) that ``masks`` (blocks, channels, recorded frames) make.

    The items of a batch start at different frames of the masks, so that no two have the same gates at a time.

    Raises:
        ValueError: the masks do not fit the network.
    """
    channels = config.channels * config.gates_output_channels + config.hidden * config.gates_hidden_channels
    if masks.shape[:2] != (config.blocks, channels):
        raise ValueError(
            f"block_gates: masks must be ({config.blocks}, {channels}, frames) for site {config.site!r} "
            f"(got {masks.shape})"
        )
    recorded = masks.shape[2]
    starts = np.arange(batch) * max(recorded // batch, 1)
    index = (starts[:, None] + np.arange(frames)) % recorded
    gates = []
    for mask in masks:
        wide = torch.from_numpy(np.ascontiguousarray(mask[:, index].transpose(1, 0, 2)))
        out = wide[:, : config.channels].contiguous() if config.gates_output_channels else None
        hidden = wide[:, channels - config.hidden :].contiguous() if config.gates_hidden_channels else None
        gates.append(BlockGates(hidden, out))
    return gates
