"""The depthwise convolution of activations in memory."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, select, slope_of
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["convolved_tile", "depthwise", "gate_tile", "hidden_tile"]


@triton.jit
def gate_tile(gate, row, frame, inside, channel_stride, frame_stride, HAS_GATE: tl.constexpr):  # noqa: N803
    """The gate of a tile in its own type, 0 outside; 1 inside where there is no gate."""
    if HAS_GATE:
        place = gate + row.to(tl.int64)[:, None] * channel_stride + frame[None, :] * frame_stride
        return tl.load(place, mask=inside, other=0)
    else:
        return tl.where(inside, 1.0, 0.0)


@triton.jit
def hidden_tile(
    a,  # first activation's input, at the batch item
    gate,  # at the batch item
    row,
    row_ok,
    frame,
    frames,
    a_row_stride,
    a_frame_stride,
    gate_channel_stride,
    gate_frame_stride,
    slope,
    HAS_GATE: tl.constexpr,  # noqa: N803
    HAS_ACTIVATION: tl.constexpr,  # noqa: N803
    HAS_SLOPE: tl.constexpr,  # noqa: N803
    MULTIPLY: tl.constexpr = True,  # noqa: N803  by the gate; otherwise it only selects
):
    """U at the given rows and frames, 0 outside the signal and behind a closed gate, whatever lies there."""
    inside = row_ok[:, None] & ((frame >= 0) & (frame < frames))[None, :]
    place = a + row[:, None] * a_row_stride + frame[None, :] * a_frame_stride
    # Loaded whole: a load that waits for the gate is one of single values.
    u = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if HAS_ACTIVATION:
        u = activate(u, slope, HAS_SLOPE)
    if HAS_GATE:
        value = gate_tile(gate, row, frame, inside, gate_channel_stride, gate_frame_stride, True)
        u = select(u, value) if MULTIPLY else tl.where(value != 0, u, 0.0)
    return u


@triton.jit
def convolved_tile(
    a,  # as for hidden_tile
    gate,
    w_dw,
    b_dw,
    row,
    row_ok,
    frame,
    frames,
    a_row_stride,
    a_frame_stride,
    gate_channel_stride,
    gate_frame_stride,
    slope,
    HAS_GATE: tl.constexpr,  # noqa: N803
    HAS_ACTIVATION: tl.constexpr,  # noqa: N803
    HAS_SLOPE: tl.constexpr,  # noqa: N803
    HAS_B_DW: tl.constexpr,  # noqa: N803
    TAPS: tl.constexpr,  # noqa: N803
    DILATION: tl.constexpr,  # noqa: N803
    LEFT: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
):
    """The second activation's input at the given rows and frames."""
    total = tl.zeros([BLOCK_H, BLOCK_T], tl.float32)
    for tap in tl.static_range(TAPS):
        weight = tl.load(w_dw + row * TAPS + tap, mask=row_ok, other=0.0).to(tl.float32)
        u = hidden_tile(
            a,
            gate,
            row,
            row_ok,
            frame + (tap * DILATION - LEFT),
            frames,
            a_row_stride,
            a_frame_stride,
            gate_channel_stride,
            gate_frame_stride,
            slope,
            HAS_GATE,
            HAS_ACTIVATION,
            HAS_SLOPE,
        )
        total += weight[:, None] * u
    if HAS_B_DW:
        total += tl.load(b_dw + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit
def depthwise(
    u,  # first activation, or x itself where the block has no expansion
    hidden_gate,
    w_dw,
    b_dw,
    slope_dw,
    hidden_order,
    hidden_count,
    z,  # (batch, hidden, z_frames): the second activation; only rows that a tile's list names are written
    hidden,
    tiles,
    u_batch_stride,
    u_row_stride,
    u_frame_stride,
    hidden_gate_batch_stride,
    hidden_gate_channel_stride,
    hidden_gate_frame_stride,
    units,  # frames of u, in units of VECTOR
    z_frames,  # frames of z: those of u or more, whose values do not count
    HIDDEN_TILES: tl.constexpr,  # noqa: N803
    HAS_HIDDEN_GATE: tl.constexpr,  # noqa: N803  gates multiply; not where all of a list's are 1 at every frame
    HAS_HIDDEN_LIST: tl.constexpr,  # noqa: N803
    HAS_B_DW: tl.constexpr,  # noqa: N803
    HAS_SLOPE_DW: tl.constexpr,  # noqa: N803
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
        u += batch * u_batch_stride
        hidden_gate += batch * hidden_gate_batch_stride
        total = convolved_tile(
            u,
            hidden_gate,
            w_dw,
            b_dw,
            row,
            row_ok,
            frame,
            frames,
            u_row_stride,
            u_frame_stride,
            hidden_gate_channel_stride,
            hidden_gate_frame_stride,
            0.0,
            HAS_HIDDEN_GATE,
            False,
            False,
            HAS_B_DW,
            TAPS,
            DILATION,
            LEFT,
            BLOCK_H,
            BLOCK_T,
        )
        total = activate(total, slope_of(slope_dw, HAS_SLOPE_DW), HAS_SLOPE_DW)
        if HAS_HIDDEN_GATE:
            inside = row_ok[:, None] & (frame < frames)[None, :]
            gate = gate_tile(
                hidden_gate, row, frame, inside, hidden_gate_channel_stride, hidden_gate_frame_stride, True
            )
            total = select(total, gate)
        target = z + (batch * hidden + row[:, None]) * z_frames + frame[None, :]
        tl.store(target, total.to(z.dtype.element_ty), mask=row_ok[:, None] & (frame < z_frames)[None, :])
