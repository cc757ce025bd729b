"""Gradient of what lies between the two 1x1 convolutions: activations, depthwise convolution and hidden gate."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, select, slope_of
from dyncp_kernels.triton.depthwise import convolved_tile, gate_tile, hidden_tile
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["depthwise_gradient", "expansion_gradient"]


@triton.jit
def depthwise_gradient(
    a,  # first activation's input, or x itself where the block has no expansion
    grad_z,  # (batch, hidden, padded_frames): gradient of the second activation
    hidden_gate,
    w_dw,
    b_dw,
    slope_in,
    slope_dw,
    hidden_order,
    hidden_count,
    z,  # (batch, hidden, padded_frames): the second activation
    grad_c,  # the same shape: gradient of the second activation's input
    grad_gate,  # float32, the same shape: gradient of the hidden gate through z
    grad_row,  # float32 (TAPS + 2, batch * tiles, hidden): of w_dw, b_dw and slope_dw, summed over the tile
    hidden,
    tiles,
    programs,  # batch * tiles
    a_batch_stride,
    a_row_stride,
    a_frame_stride,
    hidden_gate_batch_stride,
    hidden_gate_channel_stride,
    hidden_gate_frame_stride,
    units,  # frames, in units of VECTOR
    padded_frames,
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_GATE: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_LIST: tl.constexpr,  # noqa: N803
    HAS_W_IN: tl.constexpr,  # noqa: N803
    HAS_B_DW: tl.constexpr,  # noqa: N803
    HAS_SLOPE_IN: tl.constexpr,  # noqa: N803
    HAS_SLOPE_DW: tl.constexpr,  # noqa: N803
    GATE_GRADIENT: tl.constexpr,  # noqa: N803
    TAPS: tl.constexpr,  # noqa: N803
    DILATION: tl.constexpr,  # noqa: N803
    LEFT: tl.constexpr,  # noqa: N803
    VECTOR: tl.constexpr,  # noqa: N803  divides the number of frames
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_H places of its list."""
    program, block = tile_and_block(hidden, BLOCK_H)
    batch = program // tiles
    frames = units * VECTOR
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
        if HAS_HIDDEN_GATE:
            hidden_gate += batch * hidden_gate_batch_stride
        slope_1 = slope_of(slope_in, HAS_SLOPE_IN)
        slope_2 = slope_of(slope_dw, HAS_SLOPE_DW)
        a += batch * a_batch_stride
        c = convolved_tile(
            a,
            hidden_gate,
            w_dw,
            b_dw,
            row,
            row_ok,
            frame,
            frames,
            a_row_stride,
            a_frame_stride,
            hidden_gate_channel_stride,
            hidden_gate_frame_stride,
            slope_1,
            HAS_HIDDEN_GATE,
            HAS_W_IN,
            HAS_SLOPE_IN,
            HAS_B_DW,
            TAPS,
            DILATION,
            LEFT,
            BLOCK_H,
            BLOCK_T,
        )
        gate = gate_tile(
            hidden_gate, row, frame, inside, hidden_gate_channel_stride, hidden_gate_frame_stride, HAS_HIDDEN_GATE
        )
        q = activate(c, slope_2, HAS_SLOPE_DW)
        target = (batch * hidden + row[:, None]) * padded_frames + frame[None, :]
        # Frames that pad a channel hold zeros, for sums over frames.
        stored = row_ok[:, None] & (frame < padded_frames)[None, :]
        tl.store(z + target, select(q, gate).to(z.dtype.element_ty), mask=stored)
        through_z = tl.load(grad_z + target, mask=inside, other=0.0).to(tl.float32)
        if GATE_GRADIENT:
            tl.store(grad_gate + target, through_z * q, mask=inside)
        grad_q = select(through_z, gate)
        row_target = grad_row + program * hidden + row
        row_size = programs * hidden
        if HAS_SLOPE_DW:
            negative = tl.where((gate != 0) & (c <= 0), grad_q * c, 0.0)
            tl.store(row_target + (TAPS + 1) * row_size, tl.sum(negative, axis=1), mask=row_ok)
        grad_c_tile = tl.where(c > 0, grad_q, slope_2 * grad_q)
        tl.store(grad_c + target, grad_c_tile.to(grad_c.dtype.element_ty), mask=inside)
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


@triton.jit
def expansion_gradient(
    a,
    hidden_gate,
    w_dw,
    slope_in,
    hidden_order,
    hidden_count,
    grad_c,  # what depthwise_gradient wrote
    grad_a,  # (batch, hidden, padded_frames): gradient of the first activation's input
    grad_gate,  # float32, the same shape: the gradient through u is added
    grad_slope,  # float32 (batch * tiles, hidden): of slope_in, summed over the tile
    hidden,
    tiles,
    a_batch_stride,
    a_row_stride,
    a_frame_stride,
    hidden_gate_batch_stride,
    hidden_gate_channel_stride,
    hidden_gate_frame_stride,
    units,
    padded_frames,
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_GATE: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_LIST: tl.constexpr,  # noqa: N803
    HAS_W_IN: tl.constexpr,  # noqa: N803
    HAS_SLOPE_IN: tl.constexpr,  # noqa: N803
    GATE_GRADIENT: tl.constexpr,  # noqa: N803
    TAPS: tl.constexpr,  # noqa: N803
    DILATION: tl.constexpr,  # noqa: N803
    LEFT: tl.constexpr,  # noqa: N803
    VECTOR: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_H places of its list."""
    program, block = tile_and_block(hidden, BLOCK_H)
    batch = program // tiles
    frames = units * VECTOR
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
        if HAS_HIDDEN_GATE:
            hidden_gate += batch * hidden_gate_batch_stride
        base = (batch * hidden + row[:, None]) * padded_frames

        grad_u = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        for tap in tl.static_range(TAPS):
            weight = tl.load(w_dw + row * TAPS + tap, mask=row_ok, other=0.0).to(tl.float32)
            # Where the gate is closed the gradient is 0 and may never have been written.
            value = hidden_tile(
                grad_c + batch * hidden * padded_frames,
                hidden_gate,
                row,
                row_ok,
                frame + (LEFT - tap * DILATION),
                frames,
                padded_frames,
                1,
                hidden_gate_channel_stride,
                hidden_gate_frame_stride,
                0.0,
                HAS_HIDDEN_GATE,
                False,
                False,
                MULTIPLY=False,
            )
            grad_u += weight[:, None] * value

        inside = row_ok[:, None] & frame_ok[None, :]
        gate = gate_tile(
            hidden_gate, row, frame, inside, hidden_gate_channel_stride, hidden_gate_frame_stride, HAS_HIDDEN_GATE
        )
        place_in_a = a + batch * a_batch_stride + row[:, None] * a_row_stride + frame[None, :] * a_frame_stride
        value = tl.load(place_in_a, mask=inside, other=0.0).to(tl.float32)
        slope_1 = slope_of(slope_in, HAS_SLOPE_IN)
        grad_p = select(grad_u, gate)
        target = base + frame[None, :]
        if GATE_GRADIENT:
            p = value
            if HAS_W_IN:
                p = activate(value, slope_1, HAS_SLOPE_IN)
            through_z = tl.load(grad_gate + target, mask=inside, other=0.0)
            tl.store(grad_gate + target, through_z + grad_u * p, mask=inside)
        if HAS_W_IN:
            if HAS_SLOPE_IN:
                negative = tl.where((gate != 0) & (value <= 0), grad_p * value, 0.0)
                tl.store(grad_slope + program * hidden + row, tl.sum(negative, axis=1), mask=row_ok)
            grad_p = tl.where(value > 0, grad_p, slope_1 * grad_p)
        stored = row_ok[:, None] & (frame < padded_frames)[None, :]
        tl.store(grad_a + target, grad_p.to(grad_a.dtype.element_ty), mask=stored)
