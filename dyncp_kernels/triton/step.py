"""One frame of the causal block for many streams, each with its own history and gates, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, multiply, select, slope_of
from dyncp_kernels.triton.channel_lists import list_for_program

__all__ = ["step"]


@triton.jit
def product(w_tile, x_tile, total, PRECISION: tl.constexpr, ONE_STREAM: tl.constexpr):  # noqa: N803
    """Total + w_tile @ x_tile; a single stream has one column, too narrow for a matrix unit."""
    if ONE_STREAM:
        rows = tl.sum(w_tile.to(tl.float32) * tl.trans(x_tile.to(tl.float32)), axis=1)
        return total + rows[:, None]
    else:
        return multiply(w_tile, x_tile, total, PRECISION)


@triton.jit
def append(
    history,
    updated,
    newest,  # (rows, BLOCK_S)
    row,
    row_ok,
    first_stream,
    streams,
    hidden,
    stream_stride,
    row_stride,
    frame_stride,
    REACH: tl.constexpr,  # noqa: N803
    IN_PLACE: tl.constexpr,  # noqa: N803
    BLOCK_S: tl.constexpr,  # noqa: N803
    BLOCK_R: tl.constexpr,  # noqa: N803
):
    """The given rows' new history: the old one from its second frame on, and the newest frame.

    A stream at a time, so that neighbouring threads move neighbouring frames.
    """
    if IN_PLACE:
        # All threads have read what the convolution needs.
        tl.debug_barrier()
    for index in range(BLOCK_S):
        stream = first_stream + index
        old = history + stream * stream_stride + row[:, None] * row_stride
        new = updated + (stream * hidden + row[:, None]) * REACH
        for start in tl.static_range(0, REACH - 1, BLOCK_R):
            frame = start + tl.arange(0, BLOCK_R)
            moved = row_ok[:, None] & (frame < REACH - 1)[None, :] & (stream < streams)
            kept = tl.load(old + (frame + 1)[None, :] * frame_stride, mask=moved)
            if IN_PLACE:
                tl.debug_barrier()
            tl.store(new + frame[None, :], kept, mask=moved)
    stream = first_stream + tl.arange(0, BLOCK_S)
    last = updated + (stream[None, :] * hidden + row[:, None]) * REACH + (REACH - 1)
    tl.store(last, newest.to(updated.dtype.element_ty), mask=row_ok[:, None] & (stream < streams)[None, :])


@triton.jit
def step(
    x,  # (streams, channels)
    history,  # (streams, hidden, REACH)
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
    order,  # int32 (tiles of streams, blocks of output channels, hidden): room for the list of each program
    y,  # (streams, out_channels), contiguous
    updated,  # (streams, hidden, REACH), contiguous: history itself with IN_PLACE, otherwise other memory
    streams,
    channels,
    hidden,
    out_channels,
    x_stream_stride,
    x_channel_stride,
    history_stream_stride,
    history_row_stride,
    history_frame_stride,
    hidden_gate_stream_stride,
    hidden_gate_channel_stride,
    out_gate_stream_stride,
    out_gate_channel_stride,
    w_in_row_stride,
    w_in_column_stride,
    w_out_row_stride,
    w_out_column_stride,
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
    PRECISION: tl.constexpr,  # noqa: N803
    IN_PLACE: tl.constexpr,  # noqa: N803  for one block of output channels and histories of BLOCK_R frames
    BLOCK_S: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
    BLOCK_O: tl.constexpr,  # noqa: N803
    BLOCK_R: tl.constexpr,  # noqa: N803  frames of the history that move at a time
    BLOCK_N: tl.constexpr,  # noqa: N803  channels that are listed at a time
):
    """One program for each BLOCK_S streams and each BLOCK_O output channels; the first of those keeps the history.

    Each program lists the channels that its own streams keep and goes through those only.
    """
    REACH: tl.constexpr = (TAPS - 1) * DILATION  # noqa: N806
    tile = tl.program_id(0).to(tl.int64)
    stream = tile * BLOCK_S + tl.arange(0, BLOCK_S)
    stream_ok = stream < streams
    slope_1 = slope_of(slope_in, HAS_SLOPE_IN)
    slope_2 = slope_of(slope_dw, HAS_SLOPE_DW)
    keeps_history = tl.program_id(1) == 0

    hidden_active = hidden
    if HAS_HIDDEN_GATE:
        order += (tile * tl.num_programs(1) + tl.program_id(1)) * hidden
        hidden_active = list_for_program(
            hidden_gate,
            order,
            hidden,
            stream,
            stream_ok,
            hidden_gate_stream_stride,
            hidden_gate_channel_stride,
            BLOCK_N,
        )
    out_row = (tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    out_exists = out_row < out_channels
    written = out_exists[:, None] & stream_ok[None, :]
    out_active = out_exists
    if HAS_OUT_GATE:
        out_gate += stream[None, :] * out_gate_stream_stride + out_row[:, None] * out_gate_channel_stride
        out_value = tl.load(out_gate, mask=written, other=0)
        out_active = tl.max((out_value != 0).to(tl.int32), axis=1) != 0

    total = tl.zeros([BLOCK_O, BLOCK_S], tl.float32)
    opened = tl.zeros([BLOCK_S], tl.int32)
    for start in range(0, hidden_active, BLOCK_H):
        place = start + tl.arange(0, BLOCK_H)
        row_ok = place < hidden_active
        row = place
        if HAS_HIDDEN_GATE:
            row = tl.load(order + place, mask=row_ok, other=0)
        row = row.to(tl.int64)
        inside = row_ok[:, None] & stream_ok[None, :]
        if HAS_W_IN:
            u = tl.zeros([BLOCK_H, BLOCK_S], tl.float32)
            for first in range(0, channels, BLOCK_C):
                channel = first + tl.arange(0, BLOCK_C)
                channel_ok = channel < channels
                channel = channel.to(tl.int64)
                w_tile = tl.load(
                    w_in + row[:, None] * w_in_row_stride + channel[None, :] * w_in_column_stride,
                    mask=row_ok[:, None] & channel_ok[None, :],
                    other=0.0,
                )
                x_tile = tl.load(
                    x + stream[None, :] * x_stream_stride + channel[:, None] * x_channel_stride,
                    mask=channel_ok[:, None] & stream_ok[None, :],
                    other=0.0,
                )
                u = product(w_tile, x_tile, u, PRECISION, BLOCK_S == 1)
            if HAS_B_IN:
                u += tl.load(b_in + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
            u = activate(u, slope_1, HAS_SLOPE_IN)
        else:
            u = tl.load(
                x + stream[None, :] * x_stream_stride + row[:, None] * x_channel_stride, mask=inside, other=0.0
            ).to(tl.float32)
        if HAS_HIDDEN_GATE:
            gate = tl.load(
                hidden_gate + stream[None, :] * hidden_gate_stream_stride + row[:, None] * hidden_gate_channel_stride,
                mask=inside,
                other=0,
            ).to(tl.float32)
            opened = tl.maximum(opened, tl.max((gate != 0).to(tl.int32), axis=0))
            u = select(u, gate)

        old = history + stream[None, :] * history_stream_stride + row[:, None] * history_row_stride
        newest = tl.load(w_dw + row * TAPS + (TAPS - 1), mask=row_ok, other=0.0).to(tl.float32)
        z = newest[:, None] * u
        for tap in tl.static_range(TAPS - 1):
            weight = tl.load(w_dw + row * TAPS + tap, mask=row_ok, other=0.0).to(tl.float32)
            past = tl.load(old + tap * DILATION * history_frame_stride, mask=inside, other=0.0).to(tl.float32)
            z += weight[:, None] * past
        if REACH > 0:
            append(
                history,
                updated,
                u,
                row,
                row_ok & keeps_history,
                tile * BLOCK_S,
                streams,
                hidden,
                history_stream_stride,
                history_row_stride,
                history_frame_stride,
                REACH,
                IN_PLACE,
                BLOCK_S,
                BLOCK_R,
            )
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
        total = product(w_tile, z, total, PRECISION, BLOCK_S == 1)

    if HAS_HIDDEN_GATE and REACH > 0:
        # Closed channels append a zero to their history.
        for start in range(hidden_active, hidden, BLOCK_H):
            place = start + tl.arange(0, BLOCK_H)
            row_ok = place < hidden
            row = tl.load(order + place, mask=row_ok, other=0).to(tl.int64)
            append(
                history,
                updated,
                tl.zeros([BLOCK_H, BLOCK_S], tl.float32),
                row,
                row_ok & keeps_history,
                tile * BLOCK_S,
                streams,
                hidden,
                history_stream_stride,
                history_row_stride,
                history_frame_stride,
                REACH,
                IN_PLACE,
                BLOCK_S,
                BLOCK_R,
            )

    if HAS_B_OUT:
        total += tl.load(b_out + out_row, mask=out_active, other=0.0).to(tl.float32)[:, None]
    if HAS_OUT_GATE:
        out_value = tl.load(out_gate, mask=written, other=0)
        total = select(total, out_value)
    if HAS_HIDDEN_GATE:
        total = tl.where((opened != 0)[None, :], total, 0.0)
    if RESIDUAL:
        total += tl.load(
            x + stream[None, :] * x_stream_stride + out_row[:, None] * x_channel_stride, mask=written, other=0.0
        ).to(tl.float32)
    target = y + stream[None, :] * out_channels + out_row[:, None]
    tl.store(target, total.to(y.dtype.element_ty), mask=written)
