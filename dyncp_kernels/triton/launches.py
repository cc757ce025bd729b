"""Launching the kernels on torch tensors: placeholders for what is absent, strides, and lists of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from dyncp_kernels.triton.channel_lists import list_channels

__all__ = ["ChannelList", "kernel", "list_of", "strides_of", "tiles_of"]


def kernel(function: Any) -> Any:
    """The kernel as something to launch: itself, or a node of the graph while torch.compile traces."""
    from torch._library.triton import is_wrap_triton_enabled

    return wrap_triton(function) if is_wrap_triton_enabled() else function


def tiles_of(frames: int, span: int) -> int:
    """Tiles of `span` frames that cover `frames`."""
    return (frames + span - 1) // span


def strides_of(tensor: Tensor | None, count: int = 3) -> tuple[int, ...]:
    """Strides in elements; 0 along an axis of one entry, which broadcasts."""
    if tensor is None:
        return (0,) * count
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride()))


class ChannelList:
    """Open channels first, one list for each tile (or each item where the gate is constant over time)."""

    def __init__(self, order: Tensor, count: Tensor, opened: Tensor, per_tile: bool) -> None:
        self.order = order
        self.count = count
        self.opened = opened
        self.per_tile = per_tile


def list_of(gate: Tensor | None, span: int, empty: Tensor) -> ChannelList:
    """The lists of a gate (batch, channels, frames or 1) for tiles of `span` frames; `empty` where there is no gate."""
    if gate is None:
        return ChannelList(empty, empty, empty, False)
    batch, channels, frames = gate.shape
    per_tile = frames > 1 and gate.stride(2) != 0
    if not per_tile:
        gate, frames, span = gate[:, :, :1], 1, 1
    tiles = tiles_of(frames, span)
    order = torch.empty(batch, tiles, channels, dtype=torch.int32, device=gate.device)
    count = torch.empty(batch, tiles, dtype=torch.int32, device=gate.device)
    block_t = max(1, 1 << (span - 1).bit_length())
    opened = torch.empty(batch, tiles, channels, dtype=torch.uint8, device=gate.device)
    launch: Callable[..., Any] = kernel(list_channels)[(batch * tiles,)]
    launch(
        *(gate, order, count, opened, channels, frames, tiles, span, *strides_of(gate)),
        BLOCK_N=32 if block_t >= 64 else 128,
        BLOCK_T=block_t,
        num_warps=4,
    )
    return ChannelList(order, count, opened, per_tile)
