"""Gradient of a 1x1 convolution's weights: a product over all frames of the batch, split into fixed parts."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import multiply, select
from dyncp_kernels.triton.depthwise import gate_tile

__all__ = ["weight_gradient"]


@triton.jit
def weight_gradient(
    left,  # (batch, rows, frames): gradient of the convolution's output
    right,  # (batch, columns, frames): its input
    left_gate,
    right_gate,
    frame_open,  # uint8 (batch, frames): frames that count
    product,  # float32 (parts, rows, columns)
    row_sum,  # float32 (parts, rows)
    rows,
    columns,
    frames,
    tiles,
    programs,  # batch * tiles
    parts,
    left_batch_stride,
    left_row_stride,
    left_frame_stride,
    right_batch_stride,
    right_row_stride,
    right_frame_stride,
    left_gate_batch_stride,
    left_gate_row_stride,
    left_gate_frame_stride,
    right_gate_batch_stride,
    right_gate_row_stride,
    right_gate_frame_stride,
    HAS_LEFT_GATE: tl.constexpr,  # noqa: N803
    MULTIPLY_LEFT: tl.constexpr,  # noqa: N803  multiply by the left gate; otherwise it only selects
    HAS_RIGHT_GATE: tl.constexpr,  # noqa: N803  the right gate only selects
    HAS_FRAME_OPEN: tl.constexpr,  # noqa: N803
    HAS_ROW_SUM: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
):
    """One program for each block of rows, block of columns and part of the tiles of BLOCK_T frames.

    The parts are added up by the caller, in one order whatever the machine, so that the result is reproducible.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = row < rows
    row = row.to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = column < columns
    column = column.to(tl.int64)
    part = tl.program_id(2)
    size = tl.cdiv(programs, parts)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sums = tl.zeros([BLOCK_M], tl.float32)
    for index in range(part * size, tl.minimum((part + 1) * size, programs)):
        batch = (index // tiles).to(tl.int64)
        frame = (index % tiles).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        frame_ok = frame < frames
        if HAS_FRAME_OPEN:
            frame_ok = frame_ok & (tl.load(frame_open + batch * frames + frame, mask=frame_ok, other=0) != 0)
        inside = row_ok[:, None] & frame_ok[None, :]
        gate = gate_tile(
            left_gate + batch * left_gate_batch_stride,
            row,
            frame,
            inside,
            left_gate_row_stride,
            left_gate_frame_stride,
            HAS_LEFT_GATE,
        )
        left_tile = tl.load(
            left + batch * left_batch_stride + row[:, None] * left_row_stride + frame[None, :] * left_frame_stride,
            mask=gate != 0,
            other=0.0,
        )
        if MULTIPLY_LEFT:
            left_tile = select(left_tile.to(tl.float32), gate)
        if HAS_ROW_SUM:
            sums += tl.sum(left_tile.to(tl.float32), axis=1)
        right_inside = frame_ok[:, None] & column_ok[None, :]
        right_mask = right_inside
        if HAS_RIGHT_GATE:
            right_value = tl.load(
                right_gate
                + batch * right_gate_batch_stride
                + frame[:, None] * right_gate_frame_stride
                + column[None, :] * right_gate_row_stride,
                mask=right_inside,
                other=0,
            )
            right_mask = right_value != 0
        right_tile = tl.load(
            right
            + batch * right_batch_stride
            + frame[:, None] * right_frame_stride
            + column[None, :] * right_row_stride,
            mask=right_mask,
            other=0.0,
        )
        total = multiply(left_tile, right_tile, total, PRECISION)
    target = product + (part * rows + row[:, None]) * columns + column[None, :]
    tl.store(target, total, mask=row_ok[:, None] & column_ok[None, :])
    if HAS_ROW_SUM and tl.program_id(1) == 0:
        tl.store(row_sum + part * rows + row, sums, mask=row_ok)
