"""Gradient of the second half of the block: from the gradient of y to that of the depthwise convolution's output."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, multiply, select, slope_of
from dyncp_kernels.triton.depthwise import gate_tile, hidden_tile
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["hidden_gradient"]


@triton.jit
def hidden_gradient(
    a,  # as for project
    grad,
    frame_open,  # uint8 (batch, frames): 0 where no hidden channel is open
    hidden_gate,
    out_gate,
    w_dw,
    b_dw,
    w_out,
    slope_in,
    slope_dw,
    hidden_order,
    hidden_count,
    out_order,
    out_count,
    z,  # float32 (batch, hidden, frames): the second activation, for the gradient of w_out
    grad_c,  # float32, same shape: gradient of the second activation's input
    grad_gate,  # float32, same shape: gradient of the hidden gate through z
    grad_row,  # float32 (TAPS + 2, batch * tiles, hidden): of w_dw, b_dw and slope_dw, summed over the tile
    hidden,
    out_channels,
    frames,
    tiles,
    programs,  # batch * tiles
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
    HAS_SLOPE_IN: tl.constexpr,  # noqa: N803
    HAS_SLOPE_DW: tl.constexpr,  # noqa: N803
    GATE_GRADIENT: tl.constexpr,  # noqa: N803
    TAPS: tl.constexpr,  # noqa: N803
    DILATION: tl.constexpr,  # noqa: N803
    LEFT: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_O: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_H places of its list."""
    program, block = tile_and_block(hidden, BLOCK_H)
    batch = program // tiles
    frame = (program % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    frame_ok = frame < frames
    hidden_list = program if HIDDEN_TILES else batch
    hidden_active = hidden
    if HAS_HIDDEN_LIST:
        hidden_active = tl.load(hidden_count + hidden_list)
    start = block * BLOCK_H
    if start < hidden_active:
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_HIDDEN_LIST:
            row = tl.load(hidden_order + hidden_list * hidden + place, mask=row_ok, other=0)
        row = row.to(tl.int64)
        inside = row_ok[:, None] & frame_ok[None, :]

        frame_reads = frame_ok
        if HAS_HIDDEN_GATE:
            hidden_gate += batch * hidden_gate_batch_stride
            frame_reads = frame_ok & (tl.load(frame_open + batch * frames + frame, mask=frame_ok, other=0) != 0)
        out_total = out_channels
        if HAS_OUT_GATE:
            out_list = program if OUT_TILES else batch
            out_total = tl.load(out_count + out_list)
            out_order += out_list * out_channels
        grad_z = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        for first in range(0, out_total, BLOCK_O):
            out_lane = first + tl.arange(0, BLOCK_O)
            out_ok = out_lane < out_total
            out_row = out_lane
            if HAS_OUT_GATE:
                out_row = tl.load(out_order + out_lane, mask=out_ok, other=0)
            out_row = out_row.to(tl.int64)
            grad_tile = tl.load(
                grad
                + batch * grad_batch_stride
                + out_row[:, None] * grad_channel_stride
                + frame[None, :] * grad_frame_stride,
                mask=out_ok[:, None] & frame_reads[None, :],
                other=0.0,
            )
            w_tile = tl.load(
                w_out + out_row[None, :] * w_out_row_stride + row[:, None] * w_out_column_stride,
                mask=out_ok[None, :] & row_ok[:, None],
                other=0.0,
            )
            if HAS_OUT_GATE:
                gate = tl.load(
                    out_gate
                    + batch * out_gate_batch_stride
                    + out_row[:, None] * out_gate_channel_stride
                    + frame[None, :] * out_gate_frame_stride,
                    mask=out_ok[:, None] & frame_reads[None, :],
                    other=0,
                )
                grad_z = multiply(w_tile, select(grad_tile.to(tl.float32), gate), grad_z, PRECISION)
            else:
                grad_z = multiply(w_tile, grad_tile, grad_z, PRECISION)

        slope_1 = slope_of(slope_in, HAS_SLOPE_IN)
        slope_2 = slope_of(slope_dw, HAS_SLOPE_DW)
        a += batch * a_batch_stride
        c = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
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
            c += weight[:, None] * u
        if HAS_B_DW:
            c += tl.load(b_dw + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        gate = gate_tile(
            hidden_gate, row, frame, inside, hidden_gate_channel_stride, hidden_gate_frame_stride, HAS_HIDDEN_GATE
        )
        q = activate(c, slope_2, HAS_SLOPE_DW)
        target = (batch * hidden + row[:, None]) * frames + frame[None, :]
        tl.store(z + target, select(q, gate), mask=inside)
        if GATE_GRADIENT:
            tl.store(grad_gate + target, grad_z * q, mask=inside)
        grad_q = select(grad_z, gate)
        row_target = grad_row + program * hidden + row
        row_size = programs * hidden
        if HAS_SLOPE_DW:
            negative = tl.where((gate != 0) & (c <= 0), grad_q * c, 0.0)
            tl.store(row_target + (TAPS + 1) * row_size, tl.sum(negative, axis=1), mask=row_ok)
        grad_c_tile = tl.where(c > 0, grad_q, slope_2 * grad_q)
        tl.store(grad_c + target, grad_c_tile, mask=inside)
        tl.store(row_target + TAPS * row_size, tl.sum(grad_c_tile, axis=1), mask=row_ok)
        for tap in tl.static_range(TAPS):
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
            tl.store(row_target + tap * row_size, tl.sum(grad_c_tile * u, axis=1), mask=row_ok)
