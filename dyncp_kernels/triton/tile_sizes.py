"""Tile sizes of the kernels: fixed rules on shapes and types, so that a result never depends on a search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from dyncp_kernels._tf32 import tf32_allowed

__all__ = [
    "ForwardTiles",
    "FusedTile",
    "GradientTiles",
    "ProductTile",
    "RowTile",
    "StepTile",
    "forward_tiles",
    "fused_tile",
    "gradient_tiles",
    "list_tile",
    "precision_of",
    "step_tile",
]


@dataclass(frozen=True)
class FusedTile:
    """Blocks of `fused_block`."""

    frames: int
    hidden: int
    channels: int
    out_channels: int
    warps: int
    stages: int


@dataclass(frozen=True)
class ProductTile:
    """Blocks of one product: `rows` of the result, `frames`, and `depth` terms of the sum at a time."""

    rows: int
    frames: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class RowTile:
    """Blocks of a kernel that goes over rows and frames once."""

    rows: int
    frames: int
    warps: int


@dataclass(frozen=True)
class ForwardTiles:
    """Blocks of the forward in three kernels, and of the copy of x that they may begin with."""

    pad: RowTile
    expand: ProductTile
    depthwise: RowTile
    project: ProductTile


@dataclass(frozen=True)
class GradientTiles:
    """Blocks of the gradients' kernels.

    Attributes:
        forward: of what they share with the forward.
        rows: of the kernels between the products; its frames are those of the lists.
        grad_x: of the gradient of x.
        weights: of the gradients of weights, sums over `depth` frames at a time; `frames` are columns here.
    """

    forward: ForwardTiles
    rows: RowTile
    grad_x: ProductTile
    weights: ProductTile


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
    """How products are computed: "ieee" or "tf32" for float32, as torch allows it, "short" for the 16-bit types."""
    if dtype != torch.float32:
        return "short_wide" if triton.knobs.runtime.interpret else "short"
    return "tf32" if tf32_allowed() else "ieee"


def _power_of_two(size: int, least: int, most: int) -> int:
    block = least
    while block < size and block < most:
        block *= 2
    return block


# Programs that keep a large GPU busy; with fewer, smaller tiles are faster.
_ENOUGH_PROGRAMS = 264


def fused_tile(
    batch: int, frames: int, channels: int, hidden: int, out_channels: int, precision: str
) -> FusedTile | None:
    """Blocks of `fused_block`, or None where the block takes several kernels.

    A program holds x of a tile, once for each tap, in shared memory, and all output channels in registers: that fits
    for 16-bit types at the widths of the paper.
    """
    most = 128
    if not precision.startswith("short") or max(channels, out_channels) > most:
        return None
    return FusedTile(
        frames=32 if batch * -(-frames // 32) >= _ENOUGH_PROGRAMS // 2 else 16,
        hidden=_power_of_two(hidden, 16, 64),
        channels=_power_of_two(channels, 16, most),
        out_channels=_power_of_two(out_channels, 16, most),
        warps=4,
        stages=2,
    )


def _product_tile(rows: int, batch: int, frames: int, precision: str, per_tile: bool) -> ProductTile:
    """Blocks of a product; 64 frames at most where each tile of frames has lists of its own."""
    is_exact = precision == "ieee"
    most_rows, most_frames = (64, 64) if is_exact else (128, 64 if per_tile else 128)
    if not per_tile:
        most_frames = _power_of_two(frames, 16, most_frames)
    block_rows, block_frames = _power_of_two(rows, 16, most_rows), most_frames

    def programs() -> int:
        return batch * -(-frames // block_frames) * -(-rows // block_rows)

    while programs() < _ENOUGH_PROGRAMS and block_rows > 32:
        block_rows //= 2
        if programs() < _ENOUGH_PROGRAMS and block_frames > 32 and not per_tile:
            block_frames //= 2
    return ProductTile(
        rows=block_rows,
        frames=block_frames,
        depth=16 if is_exact else 32 if precision == "tf32" else 64,
        warps=8 if block_rows * block_frames >= 128 * 128 else 4,
        stages=2 if is_exact else 3,
    )


def forward_tiles(
    batch: int, frames: int, hidden: int, out_channels: int, precision: str, *, per_tile: bool
) -> ForwardTiles:
    """Blocks of the forward in three kernels; all go by tiles of 64 frames where those have lists of their own."""
    row_frames = 64 if per_tile else _power_of_two(frames, 16, 256)
    return ForwardTiles(
        pad=RowTile(rows=32, frames=_power_of_two(frames, 16, 256), warps=4),
        expand=_product_tile(hidden, batch, frames, precision, per_tile),
        depthwise=RowTile(rows=max(1, 4096 // row_frames), frames=row_frames, warps=8),
        project=_product_tile(out_channels, batch, frames, precision, per_tile),
    )


def gradient_tiles(
    batch: int, frames: int, channels: int, hidden: int, out_channels: int, precision: str, *, per_tile: bool
) -> GradientTiles:
    """Blocks of the gradients."""
    is_exact = precision == "ieee"
    return GradientTiles(
        forward=forward_tiles(batch, frames, hidden, out_channels, precision, per_tile=per_tile),
        rows=RowTile(rows=32, frames=64, warps=8),
        grad_x=_product_tile(channels, batch, frames, precision, per_tile),
        weights=ProductTile(
            rows=_power_of_two(min(hidden, out_channels), 16, 64 if is_exact else 128),
            frames=_power_of_two(min(channels, hidden), 16, 64),
            depth=16 if is_exact else 32 if precision == "tf32" else 64,
            warps=4,
            stages=2 if is_exact else 3,
        ),
    )


def list_tile(channels: int, span: int) -> dict[str, int]:
    """Blocks of `list_channels` for tiles of `span` frames, a power of two."""
    rows = _power_of_two(channels, 16, 32768 // span if span > 1 else 2048)
    return {"BLOCK_N": rows, "BLOCK_T": span, "num_warps": 16 if rows * span >= 16384 else 4}


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
