"""Launching the kernels on torch tensors: placeholders for what is absent, strides, and lists of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from dyncp_kernels.triton.channel_lists import list_channels
from dyncp_kernels.triton.tile_sizes import list_tile

__all__ = [
    "ChannelList",
    "common_vector",
    "is_constant",
    "is_tracing",
    "kernel",
    "list_of",
    "or_else",
    "strides_of",
    "tiles_of",
    "vector_of",
]


def is_tracing() -> bool:
    """Whether torch.compile traces the launches instead of running them."""
    from torch._library.triton import is_wrap_triton_enabled

    return bool(is_wrap_triton_enabled())


def kernel(function: Any) -> Any:
    """The kernel as something to launch: itself, or a node of the graph while torch.compile traces."""
    return wrap_triton(function) if is_tracing() else function


def tiles_of(frames: int, span: int) -> int:
    """Tiles of `span` frames that cover `frames`."""
    return (frames + span - 1) // span


def or_else(placeholder: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors, with one that the kernel does not touch in place of each that is absent."""
    return tuple([placeholder if tensor is None else tensor for tensor in tensors])


def strides_of(tensor: Tensor | None, count: int = 3) -> tuple[int, ...]:
    """Strides in elements; 0 along an axis of one entry, which broadcasts."""
    if tensor is None:
        return (0,) * count
    return tuple([0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride())])


def is_constant(gate: Tensor | None) -> bool:
    """Whether a gate (batch, channels, frames or 1) is the same at all frames, as its shape and strides tell."""
    return gate is None or gate.shape[2] == 1 or gate.stride(2) == 0


def common_vector(frames: int) -> int:
    """The largest power of two, at most 16, that divides a number of frames."""
    # Asked step by step, so that a length which varies is known to torch.compile by its divisors alone.
    vector = 16
    while frames % vector != 0:
        vector //= 2
    return vector


def vector_of(tensor: Tensor, gate: Tensor | None = None) -> int:
    """Values that lie side by side at every channel's start alike: at most 16 bytes of them, 1 if frames lie apart.

    With a gate that changes over time, as many as hold for both.
    """
    batch_stride, channel_stride, frame_stride = strides_of(tensor)
    if frame_stride != 1:
        return 1
    vector = 16 // tensor.element_size()
    while any(size % vector != 0 for size in (tensor.shape[2], batch_stride, channel_stride)):
        vector //= 2
    return vector if gate is None or is_constant(gate) else min(vector, vector_of(gate))


class ChannelList:
    """Open channels first, one list for each tile (or each item where the gate is constant over time).

    Attributes:
        order: int32 (batch, tiles, channels).
        count: int32 (batch, tiles), open channels.
        opened: uint8 (batch, tiles, channels).
        frame_open: uint8 (batch, frames), or (batch, 1) where the gate is constant.
        per_tile: whether each tile has its own list.
        is_list: whether there is a gate at all.
    """

    def __init__(
        self, order: Tensor, count: Tensor, opened: Tensor, frame_open: Tensor, per_tile: bool, is_list: bool
    ) -> None:
        self.order = order
        self.count = count
        self.opened = opened
        self.frame_open = frame_open
        self.per_tile = per_tile
        self.is_list = is_list


def list_of(gate: Tensor | None, span: int, empty: Tensor) -> ChannelList:
    """The lists of a gate (batch, channels, frames or 1) for tiles of `span` frames; `empty` where there is no gate."""
    if gate is None:
        return ChannelList(empty, empty, empty, empty, False, False)
    per_tile = not is_constant(gate)
    if not per_tile:
        gate, span = gate[:, :, :1], 1
    batch, channels, frames = gate.shape
    tiles = tiles_of(frames, span)
    order = torch.empty(batch, tiles, channels, dtype=torch.int32, device=gate.device)
    count = torch.empty(batch, tiles, dtype=torch.int32, device=gate.device)
    opened = torch.empty(batch, tiles, channels, dtype=torch.uint8, device=gate.device)
    frame_open = torch.empty(batch, frames, dtype=torch.uint8, device=gate.device)
    vector = vector_of(gate)
    launch: Callable[..., Any] = kernel(list_channels)[(batch * tiles,)]
    launch(
        *(gate, order, count, opened, frame_open, channels, tiles, *strides_of(gate), span, frames // vector),
        VECTOR=vector,
        **list_tile(channels, span),
    )
    return ChannelList(order, count, opened, frame_open, per_tile, True)
