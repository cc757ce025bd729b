"""The forward block in one kernel: hidden activations stay in registers and shared memory."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, multiply, select, slope_of
from dyncp_kernels.triton.depthwise import gate_tile

__all__ = ["fused_block"]


@triton.jit
def fused_block(
    x,
    hidden_gate,
    out_gate,
    w_in,
    b_in,
    w_dw,
    b_dw,
    w_out,
    b_out,
    slope_in,
    slope_dw,
    frame_open,  # uint8 (batch, frames): 0 where no hidden channel is open; only with HIDDEN_TILES
    hidden_order,
    hidden_count,
    out_open,
    y,  # (batch, out_channels, frames), contiguous
    channels,
    hidden,
    out_channels,
    units,  # frames, in units of VECTOR
    tiles,
    x_batch_stride,
    x_channel_stride,
    x_frame_stride,
    hidden_gate_batch_stride,
    hidden_gate_channel_stride,
    hidden_gate_frame_stride,
    out_gate_batch_stride,
    out_gate_channel_stride,
    out_gate_frame_stride,
    w_in_row_stride,
    w_in_column_stride,
    w_out_row_stride,
    w_out_column_stride,
    HIDDEN_TILES: tl.constexpr,  # noqa: N803  lists of hidden channels: one for each tile, or one for each item
    OUT_TILES: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_LIST: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_GATE: tl.constexpr,  # noqa: N803  gates multiply; not where all of a list's are 1 at every frame
    HAS_OUT_GATE: tl.constexpr,  # noqa: N803
    HAS_W_IN: tl.constexpr,  # noqa: N803
    HAS_B_IN: tl.constexpr,  # noqa: N803
    HAS_B_DW: tl.constexpr,  # noqa: N803
    HAS_B_OUT: tl.constexpr,  # noqa: N803
    HAS_SLOPE_IN: tl.constexpr,  # noqa: N803
    HAS_SLOPE_DW: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    TAPS: tl.constexpr,  # noqa: N803
    DILATION: tl.constexpr,  # noqa: N803
    LEFT: tl.constexpr,  # noqa: N803  frames of padding on the left, out of (TAPS - 1) * DILATION
    PRECISION: tl.constexpr,  # noqa: N803
    VECTOR: tl.constexpr,  # noqa: N803  divides the strides of items and channels: x's, and those of gates of tiles
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803  holds all channels
    BLOCK_O: tl.constexpr,  # noqa: N803  holds all output channels
):
    """One program for each tile of BLOCK_T frames.

    The first activation is computed once for each tap, at the frames that the tap reads: matrix units have the time,
    and moving values between frames would take more of it, as they lie in the registers of other threads.
    """
    program = tl.program_id(0).to(tl.int64)
    batch = program // tiles
    frames = units * VECTOR
    lane = tl.arange(0, BLOCK_T)
    first_frame = (program % tiles) * BLOCK_T
    frame = first_frame + lane
    frame_ok = frame < frames
    x += batch * (x_batch_stride // VECTOR * VECTOR)
    x_step = x_channel_stride // VECTOR * VECTOR
    slope_1 = slope_of(slope_in, HAS_SLOPE_IN)
    slope_2 = slope_of(slope_dw, HAS_SLOPE_DW)

    hidden_list = program if HIDDEN_TILES else batch
    hidden_active = hidden
    if HAS_HIDDEN_LIST:
        hidden_active = tl.load(hidden_count + hidden_list)
        hidden_order += hidden_list * hidden
    is_open = hidden_active > 0
    gate_step = hidden_gate_channel_stride
    if HIDDEN_TILES:
        gate_step = hidden_gate_channel_stride // VECTOR * VECTOR
        hidden_gate += batch * (hidden_gate_batch_stride // VECTOR * VECTOR)
    else:
        hidden_gate += batch * hidden_gate_batch_stride
    out_row = tl.arange(0, BLOCK_O)
    out_exists = out_row < out_channels
    out_active = out_exists
    if HAS_OUT_GATE:
        # All output channels sit in this block, so a list of the open ones would save no product, only reads.
        out_list = program if OUT_TILES else batch
        out_active = tl.load(out_open + out_list * out_channels + out_row, mask=out_exists, other=0) != 0
        hidden_active = tl.where(tl.max(out_active.to(tl.int32), axis=0) != 0, hidden_active, 0)

    channel = tl.arange(0, BLOCK_C)
    channel_ok = channel < channels
    x_rows = x + channel.to(tl.int64)[:, None] * x_step
    # Offsets into weights are 32-bit (the caller sees to it), those into activations 64-bit.
    total = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
    for start in range(0, hidden_active, BLOCK_H):
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_HIDDEN_LIST:
            row = tl.load(hidden_order + place, mask=row_ok, other=0)
        if HAS_W_IN:
            w_tile = tl.load(
                w_in + row[:, None] * w_in_row_stride + channel[None, :] * w_in_column_stride,
                mask=row_ok[:, None] & channel_ok[None, :],
                other=0.0,
            )
        z = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        if HAS_B_DW:
            z += tl.load(b_dw + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        for tap in tl.static_range(TAPS):
            source = frame + (tap * DILATION - LEFT)
            source_ok = (source >= 0) & (source < frames)
            inside = row_ok[:, None] & source_ok[None, :]
            if HAS_W_IN:
                x_tile = tl.load(
                    x_rows + source[None, :] * x_frame_stride,
                    mask=channel_ok[:, None] & source_ok[None, :],
                    other=0.0,
                )
                u = multiply(w_tile, x_tile, tl.zeros([BLOCK_H, BLOCK_T], tl.float32), PRECISION)
                if HAS_B_IN:
                    u += tl.load(b_in + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
                u = activate(u, slope_1, HAS_SLOPE_IN)
            else:
                place_in_x = x + row.to(tl.int64)[:, None] * x_step + source[None, :] * x_frame_stride
                u = tl.load(place_in_x, mask=inside, other=0.0).to(tl.float32)
            if HAS_HIDDEN_GATE:
                gate = gate_tile(hidden_gate, row, source, inside, gate_step, hidden_gate_frame_stride, True)
                u = select(u, gate)
                if tap * DILATION == LEFT:
                    gate_now = gate
            else:
                u = tl.where(source_ok[None, :], u, 0.0)
            z += tl.load(w_dw + row * TAPS + tap, mask=row_ok, other=0.0).to(tl.float32)[:, None] * u
        z = activate(z, slope_2, HAS_SLOPE_DW)
        if HAS_HIDDEN_GATE:
            if LEFT % DILATION != 0:
                # No tap reads the frame itself.
                inside = row_ok[:, None] & frame_ok[None, :]
                gate_now = gate_tile(hidden_gate, row, frame, inside, gate_step, hidden_gate_frame_stride, True)
            z = select(z, gate_now)

        w_tile = tl.load(
            w_out + out_row[:, None] * w_out_row_stride + row[None, :] * w_out_column_stride,
            mask=out_active[:, None] & row_ok[None, :],
            other=0.0,
        )
        total = multiply(w_tile, z.to(w_tile.dtype), total, PRECISION)

    if HAS_B_OUT:
        total += tl.load(b_out + out_row, mask=out_active, other=0.0).to(tl.float32)[:, None]
    out_row = out_row.to(tl.int64)
    written = out_exists[:, None] & frame_ok[None, :]
    if HAS_OUT_GATE:
        out_gate += batch * out_gate_batch_stride
        gate_place = out_row[:, None] * out_gate_channel_stride + frame[None, :] * out_gate_frame_stride
        out_value = tl.load(out_gate + gate_place, mask=out_active[:, None] & frame_ok[None, :], other=0)
        total = select(total, out_value)
    if HIDDEN_TILES:
        opened = tl.load(frame_open + batch * frames + frame, mask=frame_ok, other=0)
        total = tl.where((opened != 0)[None, :], total, 0.0)
    elif HAS_HIDDEN_LIST:
        total = tl.where(is_open, total, 0.0)
    if RESIDUAL:
        place_in_x = out_row[:, None] * x_step + lane[None, :] * x_frame_stride
        total += tl.load(x + first_frame * x_frame_stride + place_in_x, mask=written, other=0.0).to(tl.float32)
    y += batch * out_channels * frames + first_frame
    tl.store(y + out_row[:, None] * frames + lane[None, :], total.to(y.dtype.element_ty), mask=written)
