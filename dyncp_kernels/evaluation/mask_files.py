"""Recorded gate masks on disk: what real audio makes a trained model keep, for benchmarks that want real masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels._atomic import replacing

__all__ = ["load_masks", "save_masks"]


def save_masks(
    path: str | os.PathLike[str], files: Sequence[Sequence[NDArray[np.bool_]]], **more: NDArray[Any]
) -> None:
    """Write the masks of several clips, one bit a gate, to a compressed ``.npz`` file, whole or not at all.

    Args:
        path: the file; ``.npz`` is appended where it is missing.
        files: per clip and block, bool (channels, frames).
        more: further arrays for the file, under these names.

    Raises:
        ValueError: there is no clip, or the clips differ in blocks or channels.
    """
    shapes = {tuple(len(mask) for mask in masks) for masks in files}
    if len(shapes) != 1:
        raise ValueError(f"save_masks: all clips must have the same blocks and channels (got {sorted(shapes)})")
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    channels = np.array(shapes.pop(), dtype=np.int64)
    frames = np.array([masks[0].shape[1] for masks in files], dtype=np.int64)
    arrays: dict[str, Any] = dict(more)
    for i in range(len(channels)):
        arrays[f"block{i}"] = np.packbits(np.concatenate([masks[i] for masks in files], axis=1).T, axis=1)
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, channels=channels, frames=frames, **arrays)


def load_masks(path: str | os.PathLike[str]) -> list[list[NDArray[np.bool_]]]:
    """Inverse of :func:`save_masks`: per clip and block, bool (channels, frames).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no masks.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            channels, frames = file["channels"], file["frames"]
            ends = np.cumsum(frames)[:-1]
            blocks = []
            for i, count in enumerate(channels):
                bits = np.unpackbits(file[f"block{i}"], axis=1, count=int(count)).astype(bool)
                blocks.append(np.split(bits.T, ends, axis=1))
    except (KeyError, EOFError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: a mask file must be written by save_masks (got: {error})") from None
    return [[block[i] for block in blocks] for i in range(len(frames))]
