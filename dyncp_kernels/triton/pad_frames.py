"""A copy of x whose channels begin at multiples of 16 frames, so that tiles of it are read 16 bytes at a time."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.programs import tile_and_block

__all__ = ["pad_frames"]


@triton.jit
def pad_frames(
    x,
    padded,  # (batch, channels, padded_frames), contiguous; frames that x does not have hold 0
    channels,
    tiles,
    x_batch_stride,
    x_channel_stride,
    x_frame_stride,
    units,  # frames of x, in units of VECTOR
    padded_frames,
    VECTOR: tl.constexpr,  # noqa: N803  x's strides of channels and items are multiples of it
    BLOCK_T: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
):
    """One program for each tile of BLOCK_T frames and each BLOCK_C channels."""
    program, block = tile_and_block(channels, BLOCK_C)
    batch = program // tiles
    frame = (program % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = (block * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    exists = (channel < channels)[:, None]
    value = tl.load(
        x
        + batch * (x_batch_stride // VECTOR * VECTOR)
        + channel[:, None] * (x_channel_stride // VECTOR * VECTOR)
        + frame[None, :] * x_frame_stride,
        mask=exists & (frame < units * VECTOR)[None, :],
        other=0.0,
    )
    target = padded + (batch * channels + channel[:, None]) * padded_frames + frame[None, :]
    tl.store(target, value, mask=exists & (frame < padded_frames)[None, :])
