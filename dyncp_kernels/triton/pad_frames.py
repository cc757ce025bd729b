"""A copy of x, or of a gradient behind gates, whose tiles are read 16 bytes at a time."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import select
from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["pad_frames"]


@triton.jit
def pad_frames(
    x,
    gate,
    frame_open,  # uint8 (batch, frames): 0 where the copy is 0
    padded,  # (batch, channels, padded_frames), contiguous; frames that x does not have hold 0
    channels,
    tiles,
    x_batch_stride,
    x_channel_stride,
    x_frame_stride,
    gate_batch_stride,
    gate_channel_stride,
    gate_frame_stride,
    units,  # frames of x, in units of VECTOR
    padded_frames,
    HAS_GATE: tl.constexpr,  # noqa: N803
    HAS_FRAME_OPEN: tl.constexpr,  # noqa: N803
    VECTOR: tl.constexpr,  # noqa: N803  divides the strides of x's channels and items
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_C channels."""
    program, block = tile_and_block(channels, BLOCK_C)
    batch = program // tiles
    frame = (program % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = (block * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    exists = (channel < channels)[:, None]
    frames = units * VECTOR
    inside = exists & (frame < frames)[None, :]
    value = tl.load(
        x
        + batch * (x_batch_stride // VECTOR * VECTOR)
        + channel[:, None] * (x_channel_stride // VECTOR * VECTOR)
        + frame[None, :] * x_frame_stride,
        mask=inside,
        other=0.0,
    )
    if HAS_GATE:
        gate_place = batch * gate_batch_stride + channel[:, None] * gate_channel_stride
        gate_place += frame[None, :] * gate_frame_stride
        value = select(value.to(tl.float32), tl.load(gate + gate_place, mask=inside, other=0))
    if HAS_FRAME_OPEN:
        opened = tl.load(frame_open + batch * frames + frame, mask=frame < frames, other=0)
        value = tl.where((opened != 0)[None, :], value, 0.0)
    target = padded + (batch * channels + channel[:, None]) * padded_frames + frame[None, :]
    tl.store(target, value.to(padded.dtype.element_ty), mask=exists & (frame < padded_frames)[None, :])
