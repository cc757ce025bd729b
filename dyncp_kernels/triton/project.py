"""From the first activation's input in memory to the output: depthwise convolution, projection, gate, residual."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, multiply, select, slope_of
from dyncp_kernels.triton.depthwise import gate_tile, hidden_tile
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["project"]


@triton.jit
def project(
    x,
    a,  # (batch, hidden, frames): what expand wrote, or x itself where the block has no expansion
    grad,  # gradient of y, (batch, out_channels, frames); only for the gradient of the output gate
    hidden_gate,
    out_gate,
    w_dw,
    b_dw,
    w_out,
    b_out,
    slope_in,
    slope_dw,
    hidden_order,
    hidden_count,
    out_order,
    out_count,
    y,  # (batch, out_channels, frames), contiguous
    hidden,
    out_channels,
    frames,
    tiles,
    x_batch_stride,
    x_channel_stride,
    x_frame_stride,
    a_batch_stride,
    a_row_stride,
    a_frame_stride,
    grad_batch_stride,
    grad_channel_stride,
    grad_frame_stride,
    hidden_gate_batch_stride,
    hidden_gate_channel_stride,
    hidden_gate_frame_stride,
    out_gate_batch_stride,
    out_gate_channel_stride,
    out_gate_frame_stride,
    w_out_row_stride,
    w_out_column_stride,
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    OUT_TILES: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_GATE: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_LIST: tl.constexpr,  # noqa: N803
    HAS_OUT_GATE: tl.constexpr,  # noqa: N803
    HAS_W_IN: tl.constexpr,  # noqa: N803
    HAS_B_DW: tl.constexpr,  # noqa: N803
    HAS_B_OUT: tl.constexpr,  # noqa: N803
    HAS_SLOPE_IN: tl.constexpr,  # noqa: N803
    HAS_SLOPE_DW: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    GATE_GRADIENT: tl.constexpr,  # noqa: N803  write d loss / d out_gate (float32) in place of the output
    TAPS: tl.constexpr,  # noqa: N803
    DILATION: tl.constexpr,  # noqa: N803
    LEFT: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_O: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_O output channels."""
    program, block = tile_and_block(out_channels, BLOCK_O)
    batch = program // tiles
    frame = (program % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    frame_ok = frame < frames
    a += batch * a_batch_stride
    slope_1 = slope_of(slope_in, HAS_SLOPE_IN)
    slope_2 = slope_of(slope_dw, HAS_SLOPE_DW)

    hidden_list = program if HIDDEN_TILES else batch
    hidden_active = hidden
    if HAS_HIDDEN_GATE:
        hidden_gate += batch * hidden_gate_batch_stride
    if HAS_HIDDEN_LIST:
        hidden_active = tl.load(hidden_count + hidden_list)
        hidden_order += hidden_list * hidden
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
    opened = tl.zeros([BLOCK_T], tl.int32)
    for start in range(0, hidden_active, BLOCK_H):
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_HIDDEN_LIST:
            row = tl.load(hidden_order + place, mask=row_ok, other=0)
        row = row.to(tl.int64)
        z = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        for tap in tl.static_range(TAPS):
            weight = tl.load(w_dw + row * TAPS + tap, mask=row_ok, other=0.0).to(tl.float32)
            u = hidden_tile(
                a,
                hidden_gate,
                row,
                row_ok,
                frame + (tap * DILATION - LEFT),
                frames,
                a_row_stride,
                a_frame_stride,
                hidden_gate_channel_stride,
                hidden_gate_frame_stride,
                slope_1,
                HAS_HIDDEN_GATE,
                HAS_W_IN,
                HAS_SLOPE_IN,
            )
            z += weight[:, None] * u
        if HAS_B_DW:
            z += tl.load(b_dw + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        z = activate(z, slope_2, HAS_SLOPE_DW)
        inside = row_ok[:, None] & frame_ok[None, :]
        gate = gate_tile(
            hidden_gate, row, frame, inside, hidden_gate_channel_stride, hidden_gate_frame_stride, HAS_HIDDEN_GATE
        )
        opened = tl.maximum(opened, tl.max((gate != 0).to(tl.int32), axis=0))
        z = select(z, gate)
        w_tile = tl.load(
            w_out + out_row[:, None] * w_out_row_stride + row[None, :] * w_out_column_stride,
            mask=out_active[:, None] & row_ok[None, :],
            other=0.0,
        )
        total = multiply(w_tile, z, total, PRECISION)

    if HAS_B_OUT:
        total += tl.load(b_out + out_row, mask=out_active, other=0.0).to(tl.float32)[:, None]
    written = out_exists[:, None] & frame_ok[None, :]
    if HAS_OUT_GATE:
        gate = tl.load(
            out_gate
            + batch * out_gate_batch_stride
            + out_row[:, None] * out_gate_channel_stride
            + frame[None, :] * out_gate_frame_stride,
            mask=out_active[:, None] & frame_ok[None, :],
            other=0,
        )
        total = select(total, gate.to(tl.float32))
    if HAS_HIDDEN_GATE:
        total = tl.where((opened != 0)[None, :], total, 0.0)
    if GATE_GRADIENT:
        grad += batch * grad_batch_stride
        total *= tl.load(
            grad + out_row[:, None] * grad_channel_stride + frame[None, :] * grad_frame_stride, mask=written, other=0.0
        ).to(tl.float32)
    if RESIDUAL:
        x += batch * x_batch_stride
        total += tl.load(
            x + out_row[:, None] * x_channel_stride + frame[None, :] * x_frame_stride, mask=written, other=0.0
        ).to(tl.float32)
    place = y + batch * out_channels * frames + out_row[:, None] * frames + frame[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=written)
