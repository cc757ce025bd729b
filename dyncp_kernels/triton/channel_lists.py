"""Compact lists of the channels that a tile of frames needs, built on the device."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["append_channels", "list_channels", "list_for_program"]


@triton.jit
def append_channels(order, channel, exists, is_open, active, channels):
    """Put the next channels into a list, open ones from the front and others from the back; returns how many are open.

    `active` of the channels before them are.
    """
    place = active + tl.cumsum(is_open, axis=0) - is_open
    closed_before = channel - place
    tl.store(order + tl.where(is_open != 0, place, channels - 1 - closed_before), channel, mask=exists)
    return active + tl.sum(is_open, axis=0)


@triton.jit
def list_channels(
    gate,  # (batch, channels, frames), bool or floating
    order,  # int32 (batch, tiles, channels): open channels from the front, the others from the back
    count,  # int32 (batch, tiles): how many are open
    opened,  # uint8 (batch, tiles, channels): whether each is open
    frame_open,  # uint8 (batch, frames): whether any channel is open
    channels,
    tiles,
    gate_batch_stride,
    gate_channel_stride,
    gate_frame_stride,
    span,  # frames in a tile
    units,  # frames, in units of VECTOR
    VECTOR: tl.constexpr,  # noqa: N803  the gate's strides of channels and items are multiples of it
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
):
    """One program for each tile: a channel is open when its gate is not 0 at some frame of the tile."""
    program = tl.program_id(0).to(tl.int64)
    batch = program // tiles
    lane = tl.arange(0, BLOCK_T)
    frames = units * VECTOR
    frame = (program % tiles) * span + lane
    frame_ok = (lane < span) & (frame < frames)
    gate += batch * (gate_batch_stride // VECTOR * VECTOR) + frame[None, :] * gate_frame_stride
    order += program * channels
    opened += program * channels

    active = tl.zeros([], tl.int32)
    any_open = tl.zeros([BLOCK_T], tl.int32)
    for start in range(0, channels, BLOCK_N):
        channel = start + tl.arange(0, BLOCK_N)
        exists = channel < channels
        value = tl.load(
            gate + channel.to(tl.int64)[:, None] * (gate_channel_stride // VECTOR * VECTOR),
            mask=exists[:, None] & frame_ok[None, :],
            other=0,
        )
        gates = (value != 0).to(tl.int32)
        any_open = tl.maximum(any_open, tl.max(gates, axis=0))
        is_open = tl.max(gates, axis=1)
        active = append_channels(order, channel, exists, is_open, active, channels)
        tl.store(opened + channel, is_open.to(tl.uint8), mask=exists)
    tl.store(count + program, active)
    tl.store(frame_open + batch * frames + frame, any_open.to(tl.uint8), mask=frame_ok)


@triton.jit
def list_for_program(
    gate,  # (streams, channels), bool or floating
    order,  # int32 (channels,), the program's own: open channels from the front, the others from the back
    channels,
    stream,
    stream_ok,
    gate_stream_stride,
    gate_channel_stride,
    BLOCK_N: tl.constexpr,  # noqa: N803
):
    """List the channels that are open for one of the program's streams; returns how many they are."""
    active = tl.zeros([], tl.int32)
    for start in range(0, channels, BLOCK_N):
        channel = start + tl.arange(0, BLOCK_N)
        exists = channel < channels
        value = tl.load(
            gate + stream[:, None] * gate_stream_stride + channel.to(tl.int64)[None, :] * gate_channel_stride,
            mask=stream_ok[:, None] & exists[None, :],
            other=0,
        )
        is_open = tl.max((value != 0).to(tl.int32), axis=0)
        active = append_channels(order, channel, exists, is_open, active, channels)
    # Threads of the program read entries that other threads of it wrote.
    tl.debug_barrier()
    return active
