"""A 1x1 convolution between listed channels, with what surrounds it in the block and in its gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, multiply, select, slope_of
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["pointwise"]


@triton.jit
def pointwise(
    x,  # (batch, depth, frames)
    w,  # (rows, depth)
    bias,
    slope,
    gate,  # of the rows
    frame_open,  # uint8 (batch, frames): 0 where y is nothing but `other`
    other,  # (batch, rows, frames)
    row_order,
    row_count,
    depth_order,
    depth_count,
    y,  # (batch, rows, y_units * VECTOR), contiguous
    rows,
    depth,
    tiles,
    x_batch_stride,
    x_channel_stride,
    x_frame_stride,
    w_row_stride,
    w_column_stride,
    gate_batch_stride,
    gate_channel_stride,
    gate_frame_stride,
    other_batch_stride,
    other_channel_stride,
    other_frame_stride,
    x_units,  # frames of x, in units of X_VECTOR
    y_units,  # frames of y, in units of VECTOR; those that x does not have do not count
    HAS_ROW_LIST: tl.constexpr,  # noqa: N803
    ROW_TILES: tl.constexpr,  # noqa: N803  one list, and other gates, for each tile; or one for each item
    WRITES_CLOSED: tl.constexpr,  # noqa: N803  closed rows are written, too, as if their sum were 0
    HAS_DEPTH_LIST: tl.constexpr,  # noqa: N803
    DEPTH_TILES: tl.constexpr,  # noqa: N803
    HAS_BIAS: tl.constexpr,  # noqa: N803
    ACTIVATE: tl.constexpr,  # noqa: N803
    HAS_SLOPE: tl.constexpr,  # noqa: N803
    HAS_GATE: tl.constexpr,  # noqa: N803
    HAS_FRAME_OPEN: tl.constexpr,  # noqa: N803  without it an empty list of depth closes all frames of its tile
    OTHER: tl.constexpr,  # noqa: N803  "added", "multiplied", or "none"
    PRECISION: tl.constexpr,  # noqa: N803
    X_VECTOR: tl.constexpr,  # noqa: N803  divides the strides of x's channels and items
    VECTOR: tl.constexpr,  # noqa: N803  divides those of `other`, and of gates of tiles
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_R: tl.constexpr,  # noqa: N803
    BLOCK_D: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_R rows of its list."""
    program, block = tile_and_block(rows, BLOCK_R)
    batch = program // tiles
    lane = tl.arange(0, BLOCK_T)
    first_frame = (program % tiles) * BLOCK_T
    frame = first_frame + lane
    x_ok = frame < x_units * X_VECTOR
    y_frames = y_units * VECTOR
    y_ok = frame < y_frames

    depth_active = depth
    if HAS_DEPTH_LIST:
        depth_list = program if DEPTH_TILES else batch
        depth_active = tl.load(depth_count + depth_list)
        depth_order += depth_list * depth
    is_open = depth_active > 0
    place = block * BLOCK_R + tl.arange(0, BLOCK_R)
    row_exists = place < rows
    row_active = row_exists
    row = place
    if HAS_ROW_LIST:
        row_list = program if ROW_TILES else batch
        active = tl.load(row_count + row_list)
        row = tl.load(row_order + row_list * rows + place, mask=row_exists, other=0)
        row_active = place < active
        if not WRITES_CLOSED:
            row_exists = row_active
        depth_active = tl.where(block * BLOCK_R < active, depth_active, 0)
    row = row.to(tl.int64)

    x += batch * (x_batch_stride // X_VECTOR * X_VECTOR)
    total = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    for start in range(0, depth_active, BLOCK_D):
        item = start + tl.arange(0, BLOCK_D)
        item_ok = item < depth_active
        channel = item
        if HAS_DEPTH_LIST:
            channel = tl.load(depth_order + item, mask=item_ok, other=0)
        channel = channel.to(tl.int64)
        w_tile = tl.load(
            w + row[:, None] * w_row_stride + channel[None, :] * w_column_stride,
            mask=row_active[:, None] & item_ok[None, :],
            other=0.0,
        )
        x_tile = tl.load(
            x + channel[:, None] * (x_channel_stride // X_VECTOR * X_VECTOR) + frame[None, :] * x_frame_stride,
            mask=item_ok[:, None] & x_ok[None, :],
            other=0.0,
        )
        total = multiply(w_tile, x_tile, total, PRECISION)

    if HAS_BIAS:
        total += tl.load(bias + row, mask=row_active, other=0.0).to(tl.float32)[:, None]
    if ACTIVATE:
        total = activate(total, slope_of(slope, HAS_SLOPE), HAS_SLOPE)
    if HAS_GATE:
        if ROW_TILES:
            gate += batch * (gate_batch_stride // VECTOR * VECTOR) + first_frame * gate_frame_stride
            gate_place = row[:, None] * (gate_channel_stride // VECTOR * VECTOR) + lane[None, :] * gate_frame_stride
        else:
            gate_place = batch * gate_batch_stride + row[:, None] * gate_channel_stride
        total = select(total, tl.load(gate + gate_place, mask=row_active[:, None] & y_ok[None, :], other=0))
    if HAS_FRAME_OPEN:
        opened = tl.load(frame_open + batch * y_frames + frame, mask=y_ok, other=0)
        total = tl.where((opened != 0)[None, :], total, 0.0)
    elif HAS_DEPTH_LIST:
        total = tl.where(is_open, total, 0.0)
    written = row_exists[:, None] & y_ok[None, :]
    if OTHER != "none":
        other += batch * (other_batch_stride // VECTOR * VECTOR) + first_frame * other_frame_stride
        other_place = row[:, None] * (other_channel_stride // VECTOR * VECTOR) + lane[None, :] * other_frame_stride
        value = tl.load(other + other_place, mask=written, other=0.0).to(tl.float32)
        if OTHER == "added":
            total += value
        else:
            total *= value
    y += batch * rows * y_frames + first_frame
    tl.store(y + row[:, None] * y_frames + lane[None, :], total.to(y.dtype.element_ty), mask=written)
