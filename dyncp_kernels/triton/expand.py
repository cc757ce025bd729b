"""The expansion W_in x + b_in, written to memory: activated for the forward block, as it is for gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, multiply, slope_of
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["expand"]


@triton.jit
def expand(
    x,
    w_in,
    b_in,
    slope_in,
    hidden_order,
    hidden_count,
    a,  # (batch, hidden, a_frames): only rows that a tile's list names are written
    channels,
    hidden,
    tiles,
    x_batch_stride,
    x_channel_stride,
    x_frame_stride,
    w_in_row_stride,
    w_in_column_stride,
    x_units,  # frames of x, in units of VECTOR
    a_frames,  # frames of a: those of x or more, whose values do not count
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    HAS_LIST: tl.constexpr,  # noqa: N803
    HAS_B_IN: tl.constexpr,  # noqa: N803
    ACTIVATE: tl.constexpr,  # noqa: N803
    HAS_SLOPE_IN: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    VECTOR: tl.constexpr,  # noqa: N803  x's strides of channels and items are multiples of it
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_H places of its list."""
    program, block = tile_and_block(hidden, BLOCK_H)
    batch = program // tiles
    frame = (program % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    frame_ok = frame < x_units * VECTOR
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
        x += batch * (x_batch_stride // VECTOR * VECTOR)
        total = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        for first in range(0, channels, BLOCK_C):
            channel = first + tl.arange(0, BLOCK_C)
            channel_ok = channel < channels
            w_tile = tl.load(
                w_in + row[:, None] * w_in_row_stride + channel.to(tl.int64)[None, :] * w_in_column_stride,
                mask=row_ok[:, None] & channel_ok[None, :],
                other=0.0,
            )
            x_tile = tl.load(
                x
                + channel.to(tl.int64)[:, None] * (x_channel_stride // VECTOR * VECTOR)
                + frame[None, :] * x_frame_stride,
                mask=channel_ok[:, None] & frame_ok[None, :],
                other=0.0,
            )
            total = multiply(w_tile, x_tile, total, PRECISION)
        if HAS_B_IN:
            total += tl.load(b_in + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        if ACTIVATE:
            total = activate(total, slope_of(slope_in, HAS_SLOPE_IN), HAS_SLOPE_IN)
        target = a + (batch * hidden + row[:, None]) * a_frames + frame[None, :]
        tl.store(target, total.to(a.dtype.element_ty), mask=row_ok[:, None] & (frame < a_frames)[None, :])
