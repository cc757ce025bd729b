"""Compact lists of the channels that a tile of frames needs, built on the device."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["list_channels", "list_for_program"]


@triton.jit
def list_channels(
    gate,  # (batch, channels, frames), bool or floating
    order,  # int32 (batch, tiles, channels): open channels first, then the others, both in their order
    count,  # int32 (batch, tiles): how many are open
    opened,  # uint8 (batch, tiles, channels): whether each is open
    channels,
    frames,
    tiles,
    span,  # frames in a tile
    gate_batch_stride,
    gate_channel_stride,
    gate_frame_stride,
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr,  # noqa: N803
):
    """One program for each tile: a channel is open when its gate is not 0 at some frame of the tile."""
    program = tl.program_id(0).to(tl.int64)
    batch = program // tiles
    lane = tl.arange(0, BLOCK_T)
    frame = (program % tiles) * span + lane
    frame_ok = (lane < span) & (frame < frames)
    gate += batch * gate_batch_stride + frame[None, :] * gate_frame_stride
    order += program * channels
    opened += program * channels

    total = tl.zeros([], tl.int32)
    for start in range(0, channels, BLOCK_N):
        channel = start + tl.arange(0, BLOCK_N)
        mask = (channel < channels)[:, None] & frame_ok[None, :]
        value = tl.load(gate + channel.to(tl.int64)[:, None] * gate_channel_stride, mask=mask, other=0)
        total += tl.sum(tl.max((value != 0).to(tl.int32), axis=1), axis=0)
    tl.store(count + program, total)

    next_open = tl.zeros([], tl.int32)
    next_closed = total
    for start in range(0, channels, BLOCK_N):
        channel = start + tl.arange(0, BLOCK_N)
        exists = channel < channels
        mask = exists[:, None] & frame_ok[None, :]
        value = tl.load(gate + channel.to(tl.int64)[:, None] * gate_channel_stride, mask=mask, other=0)
        is_open = tl.max((value != 0).to(tl.int32), axis=1)
        is_closed = tl.where(exists, 1 - is_open, 0)
        place_open = next_open + tl.cumsum(is_open, axis=0) - 1
        place_closed = next_closed + tl.cumsum(is_closed, axis=0) - 1
        tl.store(order + tl.where(is_open != 0, place_open, place_closed), channel, mask=exists)
        tl.store(opened + channel, is_open.to(tl.uint8), mask=exists)
        next_open += tl.sum(is_open, axis=0)
        next_closed += tl.sum(is_closed, axis=0)


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
        place = active + tl.cumsum(is_open, axis=0) - is_open
        closed_before = channel - place
        tl.store(order + tl.where(is_open != 0, place, channels - 1 - closed_before), channel, mask=exists)
        active += tl.sum(is_open, axis=0)
    # Threads of the program read entries that other threads of it wrote.
    tl.debug_barrier()
    return active
