"""The depthwise convolution over a tile, from activations in memory."""

from __future__ import annotations

import triton
import triton.language as tl

from dyncp_kernels.triton.arithmetic import activate, select

__all__ = ["gate_tile", "hidden_tile"]


@triton.jit
def gate_tile(gate, row, frame, inside, channel_stride, frame_stride, HAS_GATE: tl.constexpr):  # noqa: N803
    """The gate of a tile as float32, 0 outside; 1 inside where there is no gate."""
    if HAS_GATE:
        place = gate + row[:, None] * channel_stride + frame[None, :] * frame_stride
        return tl.load(place, mask=inside, other=0).to(tl.float32)
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
):
    """U at the given rows and frames, 0 outside the signal.  Values behind a closed gate are not loaded."""
    inside = row_ok[:, None] & ((frame >= 0) & (frame < frames))[None, :]
    value = gate_tile(gate, row, frame, inside, gate_channel_stride, gate_frame_stride, HAS_GATE)
    place = a + row[:, None] * a_row_stride + frame[None, :] * a_frame_stride
    u = tl.load(place, mask=value != 0, other=0.0).to(tl.float32)
    if HAS_ACTIVATION:
        u = activate(u, slope, HAS_SLOPE)
    return select(u, value)
