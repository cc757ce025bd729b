"""Tile sizes of the kernels: fixed rules on shapes and types, so that a result never depends on a search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from dyncp_kernels._tf32 import tf32_allowed

__all__ = ["FusedTile", "SplitTile", "StepTile", "fused_tile", "precision_of", "split_tile", "step_tile"]


@dataclass(frozen=True)
class FusedTile:
    """Blocks of `fused_block`; `frames` holds the output frames of a tile and those around it."""

    frames: int
    hidden: int
    channels: int
    out_channels: int
    warps: int
    stages: int


@dataclass(frozen=True)
class SplitTile:
    """Blocks of the kernels that keep the hidden activations in memory, and of the gradients."""

    frames: int
    hidden: int
    channels: int
    out_channels: int
    project_out_channels: int
    project_warps: int
    warps: int
    stages: int


@dataclass(frozen=True)
class StepTile:
    """Blocks of `step`; one stream each when streams differ in their gates."""

    streams: int
    hidden: int
    channels: int
    out_channels: int
    history: int
    gates: int
    warps: int


def precision_of(dtype: torch.dtype) -> str:
    """How products are computed: "ieee" or "tf32" for float32, as torch allows it, "split" for the 16-bit types."""
    if dtype != torch.float32:
        return "split_wide" if triton.knobs.runtime.interpret else "split"
    return "tf32" if tf32_allowed() else "ieee"


def _power_of_two(size: int, least: int, most: int) -> int:
    block = least
    while block < size and block < most:
        block *= 2
    return block


def fused_tile(channels: int, hidden: int, out_channels: int, reach: int, precision: str) -> FusedTile | None:
    """Blocks of `fused_block`, or None where a tile's outputs do not fit into the registers of one program.

    All output channels belong to one program, or the hidden activations would be computed once for each block of
    them.  Exact float32 products run on the ordinary units and hold fewer outputs.
    """
    most = 256 if precision.startswith("split") else 128
    frames = 64 if reach <= 16 else 128
    if reach > 48 or out_channels > most or (frames == 128 and out_channels > most // 2):
        return None
    out_block = _power_of_two(out_channels, 16, most)
    is_exact = precision == "ieee"
    wide = out_block * frames > 8192
    return FusedTile(
        frames=frames,
        hidden=_power_of_two(hidden, 16, 16 if is_exact else 32 if wide or precision == "tf32" else 64),
        channels=_power_of_two(channels, 16, 16 if is_exact else 64 if wide or precision == "tf32" else 128),
        out_channels=out_block,
        warps=8 if out_block * frames >= 8192 else 4,
        stages=2,
    )


def split_tile(channels: int, hidden: int, out_channels: int, precision: str) -> SplitTile:
    """Blocks of expand, project and the gradients."""
    is_exact = precision == "ieee"
    out_block = _power_of_two(out_channels, 16, 64 if is_exact else 128)
    return SplitTile(
        frames=64,
        hidden=_power_of_two(hidden, 16, 16 if is_exact else 32),
        channels=_power_of_two(channels, 16, 32 if is_exact else 64),
        out_channels=_power_of_two(out_channels, 16, 32 if is_exact else 64),
        project_out_channels=out_block,
        project_warps=8 if is_exact or out_block >= 128 else 4,
        warps=4,
        stages=2,
    )


def step_tile(streams: int, channels: int, hidden: int, out_channels: int, reach: int, is_gated: bool) -> StepTile:
    """Blocks of `step`.

    A tile of streams reads the union of their channels once; a stream by itself reads only its own.  Gates of
    different callers are unrelated, so the union of 16 is nearly everything, and a tile pays only where there are
    enough streams to fill the machine with tiles.
    """
    alone = streams < 64 or (is_gated and streams <= 1024)
    return StepTile(
        streams=1 if alone else 16,
        hidden=_power_of_two(hidden, 16, 32),
        channels=_power_of_two(channels, 16, 64),
        out_channels=_power_of_two(out_channels, 16, 512),
        history=_power_of_two(reach - 1, 1, 64),
        gates=_power_of_two(hidden, 32, 256),
        warps=4 if out_channels <= 256 else 8,
    )
