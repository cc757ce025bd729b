"""The first activation's input, W_in x + b_in, written to memory: for tiles too wide to fuse, and for gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import multiply
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["expand"]


@triton.jit
def expand(
    x,
    w_in,
    b_in,
    hidden_order,
    hidden_count,
    a,  # float32 (batch, hidden, frames), contiguous; only rows that a tile's list names are written
    channels,
    hidden,
    frames,
    tiles,
    x_batch_stride,
    x_channel_stride,
    x_frame_stride,
    w_in_row_stride,
    w_in_column_stride,
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    HAS_LIST: tl.constexpr,  # noqa: N803
    HAS_B_IN: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_H places of its list."""
    program, block = tile_and_block(hidden, BLOCK_H)
    batch = program // tiles
    frame = (program % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    frame_ok = frame < frames
    hidden_list = program if HIDDEN_TILES else batch
    hidden_active = hidden
    if HAS_LIST:
        hidden_active = tl.load(hidden_count + hidden_list)
    start = block * BLOCK_H
    if start < hidden_active:
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_LIST:
            row = tl.load(hidden_order + hidden_list * hidden + place, mask=row_ok, other=0)
        row = row.to(tl.int64)
        total = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        for first in range(0, channels, BLOCK_C):
            channel = first + tl.arange(0, BLOCK_C)
            channel_ok = channel < channels
            channel = channel.to(tl.int64)
            w_tile = tl.load(
                w_in + row[:, None] * w_in_row_stride + channel[None, :] * w_in_column_stride,
                mask=row_ok[:, None] & channel_ok[None, :],
                other=0.0,
            )
            x_tile = tl.load(
                x + batch * x_batch_stride + channel[:, None] * x_channel_stride + frame[None, :] * x_frame_stride,
                mask=channel_ok[:, None] & frame_ok[None, :],
                other=0.0,
            )
            total = multiply(w_tile, x_tile, total, PRECISION)
        if HAS_B_IN:
            total += tl.load(b_in + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        target = a + (batch * hidden + row[:, None]) * frames + frame[None, :]
        tl.store(target, total, mask=row_ok[:, None] & frame_ok[None, :])
