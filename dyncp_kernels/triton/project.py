"""From the second activation in memory to the output: projection, output gate, residual."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import multiply, select
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["project"]


@triton.jit
def project(
    x,
    z,  # (batch, hidden, z_frames): rows that a tile's list names
    grad,  # gradient of y, (batch, out_channels, frames); only for the gradient of the output gate
    out_gate,
    w_out,
    b_out,
    frame_open,  # uint8 (batch, frames): 0 where no hidden channel is open; without it the lists say so
    hidden_order,
    hidden_count,
    out_order,
    out_count,
    y,  # (batch, out_channels, frames), contiguous
    hidden,
    out_channels,
    units,  # frames, in units of VECTOR
    tiles,
    x_batch_stride,
    x_channel_stride,
    x_frame_stride,
    z_batch_stride,
    z_row_stride,
    z_frame_stride,
    grad_batch_stride,
    grad_channel_stride,
    grad_frame_stride,
    out_gate_batch_stride,
    out_gate_channel_stride,
    out_gate_frame_stride,
    w_out_row_stride,
    w_out_column_stride,
    z_frames,  # frames of z: `frames` or more, whose values do not count
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    OUT_TILES: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_LIST: tl.constexpr,  # noqa: N803
    HAS_OUT_GATE: tl.constexpr,  # noqa: N803
    HAS_FRAME_OPEN: tl.constexpr,  # noqa: N803
    HAS_B_OUT: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    GATE_GRADIENT: tl.constexpr,  # noqa: N803  write d loss / d out_gate (float32) in place of the output
    PRECISION: tl.constexpr,  # noqa: N803
    VECTOR: tl.constexpr,  # noqa: N803  divides the strides of items and channels: x's, and those of gates of tiles
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_O: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_O output channels."""
    program, block = tile_and_block(out_channels, BLOCK_O)
    batch = program // tiles
    frames = units * VECTOR
    lane = tl.arange(0, BLOCK_T)
    first_frame = (program % tiles) * BLOCK_T
    frame = first_frame + lane
    frame_ok = frame < frames
    z_ok = frame < z_frames
    z += batch * z_batch_stride

    hidden_list = program if HIDDEN_TILES else batch
    hidden_active = hidden
    if HAS_HIDDEN_LIST:
        hidden_active = tl.load(hidden_count + hidden_list)
        hidden_order += hidden_list * hidden
    is_open = hidden_active > 0
    out_lane = block * BLOCK_O + tl.arange(0, BLOCK_O)
    out_exists = out_lane < out_channels
    out_row = out_lane
    out_active = out_exists
    if HAS_OUT_GATE:
        out_list = program if OUT_TILES else batch
        out_total = tl.load(out_count + out_list)
        out_row = tl.load(out_order + out_list * out_channels + out_lane, mask=out_exists, other=0)
        out_active = out_lane < out_total
        hidden_active = tl.where(block * BLOCK_O < out_total, hidden_active, 0)
    out_row = out_row.to(tl.int64)

    total = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
    for start in range(0, hidden_active, BLOCK_H):
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_HIDDEN_LIST:
            row = tl.load(hidden_order + place, mask=row_ok, other=0)
        row = row.to(tl.int64)
        w_tile = tl.load(
            w_out + out_row[:, None] * w_out_row_stride + row[None, :] * w_out_column_stride,
            mask=out_active[:, None] & row_ok[None, :],
            other=0.0,
        )
        z_tile = tl.load(
            z + row[:, None] * z_row_stride + frame[None, :] * z_frame_stride,
            mask=row_ok[:, None] & z_ok[None, :],
            other=0.0,
        )
        total = multiply(w_tile, z_tile, total, PRECISION)

    if HAS_B_OUT:
        total += tl.load(b_out + out_row, mask=out_active, other=0.0).to(tl.float32)[:, None]
    written = out_exists[:, None] & frame_ok[None, :]
    if HAS_OUT_GATE:
        if OUT_TILES:
            out_gate += batch * (out_gate_batch_stride // VECTOR * VECTOR) + first_frame * out_gate_frame_stride
            gate_place = out_row[:, None] * (out_gate_channel_stride // VECTOR * VECTOR)
            gate_place += lane[None, :] * out_gate_frame_stride
        else:
            gate_place = batch * out_gate_batch_stride + out_row[:, None] * out_gate_channel_stride
        gate = tl.load(out_gate + gate_place, mask=out_active[:, None] & frame_ok[None, :], other=0)
        total = select(total, gate)
    if HAS_FRAME_OPEN:
        opened = tl.load(frame_open + batch * frames + frame, mask=frame_ok, other=0)
        total = tl.where((opened != 0)[None, :], total, 0.0)
    elif HAS_HIDDEN_LIST:
        total = tl.where(is_open, total, 0.0)
    if GATE_GRADIENT:
        grad += batch * grad_batch_stride
        total *= tl.load(
            grad + out_row[:, None] * grad_channel_stride + frame[None, :] * grad_frame_stride, mask=written, other=0.0
        ).to(tl.float32)
    if RESIDUAL:
        x += batch * (x_batch_stride // VECTOR * VECTOR) + first_frame * x_frame_stride
        place = out_row[:, None] * (x_channel_stride // VECTOR * VECTOR) + lane[None, :] * x_frame_stride
        total += tl.load(x + place, mask=written, other=0.0).to(tl.float32)
    y += batch * out_channels * frames + first_frame
    tl.store(y + out_row[:, None] * frames + lane[None, :], total.to(y.dtype.element_ty), mask=written)
