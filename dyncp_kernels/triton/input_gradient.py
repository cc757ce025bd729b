"""Gradient of the first half of the block: back through the depthwise convolution, the gate and the expansion."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, multiply, select, slope_of
from dyncp_kernels.triton.depthwise import gate_tile
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["expansion_gradient", "input_gradient"]


@triton.jit
def expansion_gradient(
    a,
    hidden_gate,
    w_dw,
    slope_in,
    hidden_order,
    hidden_count,
    grad_c,  # what hidden_gradient wrote
    grad_a,  # float32 (batch, hidden, frames): gradient of the first activation's input
    grad_gate,  # float32, same shape: the gradient through u is added
    grad_slope,  # float32 (batch * tiles, hidden): of slope_in, summed over the tile
    hidden,
    frames,
    tiles,
    a_batch_stride,
    a_row_stride,
    a_frame_stride,
    hidden_gate_batch_stride,
    hidden_gate_channel_stride,
    hidden_gate_frame_stride,
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_GATE: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_LIST: tl.constexpr,  # noqa: N803
    HAS_W_IN: tl.constexpr,  # noqa: N803
    HAS_SLOPE_IN: tl.constexpr,  # noqa: N803
    GATE_GRADIENT: tl.constexpr,  # noqa: N803
    TAPS: tl.constexpr,  # noqa: N803
    DILATION: tl.constexpr,  # noqa: N803
    LEFT: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_H places of its list."""
    program = tl.program_id(0).to(tl.int64)
    batch = program // tiles
    frame = (program % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    frame_ok = frame < frames
    hidden_list = program if HIDDEN_TILES else batch
    hidden_active = hidden
    if HAS_HIDDEN_LIST:
        hidden_active = tl.load(hidden_count + hidden_list)
    start = tl.program_id(1) * BLOCK_H
    if start < hidden_active:
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_HIDDEN_LIST:
            row = tl.load(hidden_order + hidden_list * hidden + place, mask=row_ok, other=0)
        row = row.to(tl.int64)
        if HAS_HIDDEN_GATE:
            hidden_gate += batch * hidden_gate_batch_stride
        base = (batch * hidden + row[:, None]) * frames

        grad_u = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
        for tap in tl.static_range(TAPS):
            weight = tl.load(w_dw + row * TAPS + tap, mask=row_ok, other=0.0).to(tl.float32)
            user = frame + (LEFT - tap * DILATION)
            inside = row_ok[:, None] & ((user >= 0) & (user < frames))[None, :]
            gate = gate_tile(
                hidden_gate, row, user, inside, hidden_gate_channel_stride, hidden_gate_frame_stride, HAS_HIDDEN_GATE
            )
            # Where the gate is closed the gradient is 0 and may never have been written.
            grad_u += weight[:, None] * tl.load(grad_c + base + user[None, :], mask=gate != 0, other=0.0)

        inside = row_ok[:, None] & frame_ok[None, :]
        gate = gate_tile(
            hidden_gate, row, frame, inside, hidden_gate_channel_stride, hidden_gate_frame_stride, HAS_HIDDEN_GATE
        )
        a += batch * a_batch_stride
        value = tl.load(a + row[:, None] * a_row_stride + frame[None, :] * a_frame_stride, mask=inside, other=0.0)
        value = value.to(tl.float32)
        slope_1 = slope_of(slope_in, HAS_SLOPE_IN)
        grad_p = select(grad_u, gate)
        if GATE_GRADIENT:
            p = value
            if HAS_W_IN:
                p = activate(value, slope_1, HAS_SLOPE_IN)
            through_z = tl.load(grad_gate + base + frame[None, :], mask=inside, other=0.0)
            tl.store(grad_gate + base + frame[None, :], through_z + grad_u * p, mask=inside)
        if HAS_W_IN:
            if HAS_SLOPE_IN:
                negative = tl.where((gate != 0) & (value <= 0), grad_p * value, 0.0)
                tl.store(grad_slope + program * hidden + row, tl.sum(negative, axis=1), mask=row_ok)
            grad_p = tl.where(value > 0, grad_p, slope_1 * grad_p)
        tl.store(grad_a + base + frame[None, :], grad_p, mask=inside)


@triton.jit
def input_gradient(
    grad,
    grad_a,
    hidden_gate,
    w_in,
    hidden_order,
    hidden_count,
    grad_x,  # (batch, channels, frames), contiguous
    channels,
    hidden,
    frames,
    tiles,
    grad_batch_stride,
    grad_channel_stride,
    grad_frame_stride,
    hidden_gate_batch_stride,
    hidden_gate_channel_stride,
    hidden_gate_frame_stride,
    w_in_row_stride,
    w_in_column_stride,
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_GATE: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_LIST: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
):
    """W_in^T grad_a [+ grad]: one program for each tile of BLOCK_T frames and each BLOCK_C channels."""
    program, block = tile_and_block(channels, BLOCK_C)
    batch = program // tiles
    frame = (program % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    frame_ok = frame < frames
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_ok = channel < channels
    channel = channel.to(tl.int64)
    hidden_list = program if HIDDEN_TILES else batch
    hidden_active = hidden
    if HAS_HIDDEN_LIST:
        hidden_active = tl.load(hidden_count + hidden_list)
        hidden_order += hidden_list * hidden
    if HAS_HIDDEN_GATE:
        hidden_gate += batch * hidden_gate_batch_stride
    total = tl.zeros([BLOCK_C, BLOCK_T], tl.float32)
    for start in range(0, hidden_active, BLOCK_H):
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_HIDDEN_LIST:
            row = tl.load(hidden_order + place, mask=row_ok, other=0)
        row = row.to(tl.int64)
        inside = row_ok[:, None] & frame_ok[None, :]
        gate = gate_tile(
            hidden_gate, row, frame, inside, hidden_gate_channel_stride, hidden_gate_frame_stride, HAS_HIDDEN_GATE
        )
        grad_tile = tl.load(
            grad_a + (batch * hidden + row[:, None]) * frames + frame[None, :], mask=gate != 0, other=0.0
        )
        w_tile = tl.load(
            w_in + row[None, :] * w_in_row_stride + channel[:, None] * w_in_column_stride,
            mask=row_ok[None, :] & channel_ok[:, None],
            other=0.0,
        )
        total = multiply(w_tile, grad_tile, total, PRECISION)
    written = channel_ok[:, None] & frame_ok[None, :]
    if RESIDUAL:
        total += tl.load(
            grad
            + batch * grad_batch_stride
            + channel[:, None] * grad_channel_stride
            + frame[None, :] * grad_frame_stride,
            mask=written,
            other=0.0,
        ).to(tl.float32)
    target = grad_x + (batch * channels + channel[:, None]) * frames + frame[None, :]
    tl.store(target, total.to(grad_x.dtype.element_ty), mask=written)
