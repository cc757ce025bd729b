"""The forward block in one kernel: hidden activations stay in registers and shared memory."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, multiply, select, slope_of

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
    hidden_order,
    hidden_count,
    out_open,
    y,  # (batch, out_channels, frames), contiguous
    channels,
    hidden,
    out_channels,
    frames,
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
    HAS_HIDDEN_GATE: tl.constexpr,  # noqa: N803
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
    SPAN: tl.constexpr,  # noqa: N803  frames of output in a tile: BLOCK_T less the frames around it
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
    BLOCK_O: tl.constexpr,  # noqa: N803
    X_ONCE: tl.constexpr,  # noqa: N803  all channels of x fit into BLOCK_C: load them once
):
    """One program for each tile of SPAN frames and each BLOCK_O output channels.

    Lane j of a tile stands for frame tile * SPAN - LEFT + j everywhere; u is right in all lanes, z and y in the SPAN
    lanes from LEFT on, whose taps all lie inside the tile.
    """
    program = tl.program_id(0).to(tl.int64)
    batch = program // tiles
    tile = program % tiles
    lane = tl.arange(0, BLOCK_T)
    frame = tile * SPAN - LEFT + lane
    frame_ok = (frame >= 0) & (frame < frames)
    stored = (lane >= LEFT) & (lane < LEFT + SPAN) & frame_ok
    x += batch * x_batch_stride + frame[None, :] * x_frame_stride
    slope_1 = slope_of(slope_in, HAS_SLOPE_IN)
    slope_2 = slope_of(slope_dw, HAS_SLOPE_DW)

    hidden_list = program if HIDDEN_TILES else batch
    hidden_active = hidden
    if HAS_HIDDEN_GATE:
        hidden_active = tl.load(hidden_count + hidden_list)
        hidden_order += hidden_list * hidden
        hidden_gate += batch * hidden_gate_batch_stride + frame[None, :] * hidden_gate_frame_stride
    out_row = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    out_exists = out_row < out_channels
    out_active = out_exists
    if HAS_OUT_GATE:
        # All output channels sit in this block, so a list of the open ones would save no product, only reads.
        out_list = program if OUT_TILES else batch
        out_active = tl.load(out_open + out_list * out_channels + out_row, mask=out_exists, other=0) != 0
        hidden_active = tl.where(tl.max(out_active.to(tl.int32), axis=0) != 0, hidden_active, 0)

    if X_ONCE:
        channel = tl.arange(0, BLOCK_C)
        channel_ok = channel < channels
        x_all = tl.load(
            x + channel.to(tl.int64)[:, None] * x_channel_stride,
            mask=channel_ok[:, None] & frame_ok[None, :],
            other=0.0,
        )

    # Offsets into weights are 32-bit (the caller sees to it), those into activations 64-bit.
    total = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
    opened = tl.zeros([BLOCK_T], tl.int32)
    for start in range(0, hidden_active, BLOCK_H):
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_HIDDEN_GATE:
            row = tl.load(hidden_order + place, mask=row_ok, other=0)
        inside = row_ok[:, None] & frame_ok[None, :]

        if HAS_W_IN:
            u = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
            if X_ONCE:
                w_tile = tl.load(
                    w_in + row[:, None] * w_in_row_stride + channel[None, :] * w_in_column_stride,
                    mask=row_ok[:, None] & channel_ok[None, :],
                    other=0.0,
                )
                u = multiply(w_tile, x_all, u, PRECISION)
            else:
                for first in range(0, channels, BLOCK_C):
                    channel = first + tl.arange(0, BLOCK_C)
                    channel_ok = channel < channels
                    w_tile = tl.load(
                        w_in + row[:, None] * w_in_row_stride + channel[None, :] * w_in_column_stride,
                        mask=row_ok[:, None] & channel_ok[None, :],
                        other=0.0,
                    )
                    x_tile = tl.load(
                        x + channel.to(tl.int64)[:, None] * x_channel_stride,
                        mask=channel_ok[:, None] & frame_ok[None, :],
                        other=0.0,
                    )
                    u = multiply(w_tile, x_tile, u, PRECISION)
            if HAS_B_IN:
                u += tl.load(b_in + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
            u = activate(u, slope_1, HAS_SLOPE_IN)
        else:
            u = tl.load(x + row.to(tl.int64)[:, None] * x_channel_stride, mask=inside, other=0.0).to(tl.float32)
        if HAS_HIDDEN_GATE:
            gate = tl.load(hidden_gate + row.to(tl.int64)[:, None] * hidden_gate_channel_stride, mask=inside, other=0)
            gate = gate.to(tl.float32)
            opened = tl.maximum(opened, tl.max((gate != 0).to(tl.int32), axis=0))
            u = select(u, gate)
        else:
            u = tl.where(inside, u, 0.0)

        z = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        for tap in tl.static_range(TAPS):
            weight = tl.load(w_dw + row * TAPS + tap, mask=row_ok, other=0.0).to(tl.float32)
            if tap * DILATION == LEFT:
                z += weight[:, None] * u
            else:
                source = lane + (tap * DILATION - LEFT)
                source = tl.minimum(tl.maximum(source, 0), BLOCK_T - 1)
                z += weight[:, None] * tl.gather(u, tl.broadcast_to(source[None, :], [BLOCK_H, BLOCK_T]), axis=1)
        if HAS_B_DW:
            z += tl.load(b_dw + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        z = activate(z, slope_2, HAS_SLOPE_DW)
        if HAS_HIDDEN_GATE:
            z = select(z, gate)

        w_tile = tl.load(
            w_out + out_row[:, None] * w_out_row_stride + row[None, :] * w_out_column_stride,
            mask=out_active[:, None] & row_ok[None, :],
            other=0.0,
        )
        total = multiply(w_tile, z, total, PRECISION)

    if HAS_B_OUT:
        total += tl.load(b_out + out_row, mask=out_active, other=0.0).to(tl.float32)[:, None]
    out_row = out_row.to(tl.int64)
    written = out_exists[:, None] & stored[None, :]
    if HAS_OUT_GATE:
        out_gate += batch * out_gate_batch_stride
        gate_place = out_row[:, None] * out_gate_channel_stride + frame[None, :] * out_gate_frame_stride
        out_value = tl.load(out_gate + gate_place, mask=out_active[:, None] & stored[None, :], other=0)
        total = select(total, out_value.to(tl.float32))
    if HAS_HIDDEN_GATE:
        total = tl.where((opened != 0)[None, :], total, 0.0)
    if RESIDUAL:
        total += tl.load(x + out_row[:, None] * x_channel_stride, mask=written, other=0.0).to(tl.float32)
    target = y + batch * out_channels * frames + out_row[:, None] * frames + frame[None, :]
    tl.store(target, total.to(y.dtype.element_ty), mask=written)
