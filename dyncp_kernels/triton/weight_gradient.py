"""Gradient of a 1x1 convolution's weights: a product over all frames of the batch, split into fixed parts."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import multiply

__all__ = ["weight_gradient"]


@triton.jit
def weight_gradient(
    left,  # (batch, rows, frames): gradient of the convolution's output
    right,  # (batch, columns, frames): its input
    product,  # float32 (parts, rows, columns)
    row_sum,  # float32 (parts, rows)
    rows,
    columns,
    tiles,
    programs,  # batch * tiles
    parts,
    left_batch_stride,
    left_row_stride,
    left_frame_stride,
    right_batch_stride,
    right_row_stride,
    right_frame_stride,
    units,  # frames that count, in units of VECTOR
    HAS_ROW_SUM: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    VECTOR: tl.constexpr,  # noqa: N803  divides both tensors' strides of items and rows
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
    left += row[:, None] * (left_row_stride // VECTOR * VECTOR)
    right += column[None, :] * (right_row_stride // VECTOR * VECTOR)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sums = tl.zeros([BLOCK_M], tl.float32)
    for index in range(part * size, tl.minimum((part + 1) * size, programs)):
        batch = (index // tiles).to(tl.int64)
        frame = (index % tiles).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        frame_ok = frame < units * VECTOR
        left_tile = tl.load(
            left + batch * (left_batch_stride // VECTOR * VECTOR) + frame[None, :] * left_frame_stride,
            mask=row_ok[:, None] & frame_ok[None, :],
            other=0.0,
        )
        right_tile = tl.load(
            right + batch * (right_batch_stride // VECTOR * VECTOR) + frame[:, None] * right_frame_stride,
            mask=frame_ok[:, None] & column_ok[None, :],
            other=0.0,
        )
        if HAS_ROW_SUM:
            sums += tl.sum(left_tile.to(tl.float32), axis=1)
        total = multiply(left_tile, right_tile, total, PRECISION)
    target = product + (part * rows + row[:, None]) * columns + column[None, :]
    tl.store(target, total, mask=row_ok[:, None] & column_ok[None, :])
    if HAS_ROW_SUM and tl.program_id(1) == 0:
        tl.store(row_sum + part * rows + row, sums, mask=row_ok)
