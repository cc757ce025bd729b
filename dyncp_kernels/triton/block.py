"""One block on a GPU: its tensors as the kernels want them, and the convolutions that forward and gradient share."""

from __future__ import annotations

import torch
from torch import Tensor

from dyncp_kernels.triton.depthwise import depthwise
from dyncp_kernels.triton.launches import (
    ChannelList,
    common_vector,
    is_constant,
    is_tracing,
    kernel,
    list_of,
    or_else,
    strides_of,
    tiles_of,
    vector_of,
)
from dyncp_kernels.triton.pad_frames import pad_frames
from dyncp_kernels.triton.pointwise import pointwise
from dyncp_kernels.triton.tile_sizes import ForwardTiles, ProductTile, RowTile, precision_of

__all__ = ["Block", "convolve_depthwise", "convolve_pointwise", "multiplies", "padded_copy", "pitch_of"]


class Block:
    """One call's tensors and sizes, as the kernels want them."""

    def __init__(
        self,
        x: Tensor,
        tensors: tuple[Tensor | None, ...],
        dilation: int,
        causal: bool,
        residual: bool,
    ) -> None:
        hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw = tensors
        assert w_dw is not None
        assert w_out is not None
        self.x = x
        self.hidden_gate = _as_bytes(hidden_gate)
        self.out_gate = _as_bytes(out_gate)
        self.w_in = w_in
        self.b_in = None if b_in is None else b_in.contiguous()
        self.w_dw = w_dw.contiguous()
        self.b_dw = None if b_dw is None else b_dw.contiguous()
        # Columns of open hidden channels are read in one piece each, or else rows of open output channels.
        if hidden_gate is not None:
            self.w_out = w_out.t().contiguous().t()
        else:
            self.w_out = w_out if out_gate is None else w_out.contiguous()
        self.b_out = None if b_out is None else b_out.contiguous()
        self.slope_in = slope_in
        self.slope_dw = slope_dw
        self.batch, self.channels, self.frames = x.shape
        self.hidden, self.taps = w_dw.shape
        self.out_channels = w_out.shape[0]
        self.dilation = dilation
        reach = (self.taps - 1) * dilation
        self.left = reach if causal else reach // 2
        self.residual = residual
        self.precision = precision_of(x.dtype)
        self.hidden_gate_strides = strides_of(self.hidden_gate)
        self.out_gate_strides = strides_of(self.out_gate)

    def taps_options(self) -> dict[str, int]:
        """What the kernels know of the taps when they are compiled."""
        return {"TAPS": self.taps, "DILATION": self.dilation, "LEFT": self.left}


def _as_bytes(gate: Tensor | None) -> Tensor | None:
    """Booleans as bytes: kernels move those as they are and compare once.

    Not while torch.compile traces: it may compute a gate and its view in one kernel of its own, and cannot turn the one
    type into the other there.
    """
    if gate is None or gate.dtype != torch.bool or is_tracing():
        return gate
    return gate.view(torch.uint8)


def multiplies(gate: Tensor | None) -> bool:
    """Whether a gate's values matter beside its list: not those of booleans where a list holds for all frames."""
    return gate is not None and not (is_constant(gate) and gate.dtype in (torch.bool, torch.uint8))


def pitch_of(frames: int) -> int:
    """Frames between the channels of what is kept in memory, so that every channel begins with a whole vector."""
    return tiles_of(frames, 16) * 16


def padded_copy(
    x: Tensor, sizes: ForwardTiles, precision: str, gate: Tensor | None = None, frame_open: Tensor | None = None
) -> Tensor:
    """X behind a gate; a copy where 16-bit values would be read by less than 8 bytes at a time.

    Products of float32 read single values or pairs anyhow.
    """
    vector = vector_of(x)
    reads_well = vector * x.element_size() >= 8 or not precision.startswith("short")
    if gate is None and frame_open is None and reads_well:
        return x
    batch, channels, frames = x.shape
    pitch = pitch_of(frames)
    padded = x.new_empty(batch, channels, pitch)
    tiles = tiles_of(pitch, sizes.pad.frames)
    kernel(pad_frames)[(batch * tiles * tiles_of(channels, sizes.pad.rows),)](
        *(x, *or_else(x, gate, frame_open), padded, channels, tiles),
        *(*strides_of(x), *strides_of(gate), frames // vector, pitch),
        HAS_GATE=gate is not None,
        HAS_FRAME_OPEN=frame_open is not None,
        VECTOR=vector,
        BLOCK_T=sizes.pad.frames,
        BLOCK_C=sizes.pad.rows,
        num_warps=sizes.pad.warps,
    )
    return padded


def convolve_pointwise(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    tile: ProductTile,
    precision: str,
    *,
    bias: Tensor | None = None,
    activation: tuple[Tensor | None] | None = None,
    row_list: ChannelList | None = None,
    depth_list: ChannelList | None = None,
    gate: Tensor | None = None,
    frame_open: Tensor | None = None,
    added: Tensor | None = None,
    factor: Tensor | None = None,
) -> None:
    """Write w x + bias to y, then activated (with a slope or none), gated, multiplied by `factor` or with `added`."""
    no_list = list_of(None, 0, x)
    row_list, depth_list = row_list or no_list, depth_list or no_list
    other = added if factor is None else factor
    batch, rows, y_frames = y.shape
    # Frames of x beyond those of y only fill its last vector.
    tiles = tiles_of(min(x.shape[2], y_frames), tile.frames)
    x_vector = vector_of(x)
    vector = vector_of(y if other is None else other, gate)
    slope = None if activation is None else activation[0]
    kernel(pointwise)[(batch * tiles * tiles_of(rows, tile.rows),)](
        *(x, w, *or_else(x, bias, slope, gate, frame_open, other)),
        *(row_list.order, row_list.count, depth_list.order, depth_list.count, y),
        *(rows, x.shape[1], tiles, *strides_of(x), *w.stride(), *strides_of(gate), *strides_of(other)),
        *(x.shape[2] // x_vector, y_frames // vector),
        HAS_ROW_LIST=row_list.is_list,
        ROW_TILES=row_list.per_tile,
        WRITES_CLOSED=other is not None or gate is not None,
        HAS_DEPTH_LIST=depth_list.is_list,
        DEPTH_TILES=depth_list.per_tile,
        HAS_BIAS=bias is not None,
        ACTIVATE=activation is not None,
        HAS_SLOPE=slope is not None,
        HAS_GATE=gate is not None,
        HAS_FRAME_OPEN=frame_open is not None,
        OTHER="none" if other is None else "added" if factor is None else "multiplied",
        PRECISION=precision,
        X_VECTOR=x_vector,
        VECTOR=vector,
        BLOCK_T=tile.frames,
        BLOCK_R=tile.rows,
        BLOCK_D=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def convolve_depthwise(block: Block, u: Tensor, hidden_list: ChannelList, tile: RowTile, z: Tensor) -> None:
    """Write the second activation to the rows of `z` that a list names."""
    tiles = tiles_of(block.frames, tile.frames)
    vector = common_vector(block.frames)
    kernel(depthwise)[(block.batch * tiles * tiles_of(block.hidden, tile.rows),)](
        *(u, *or_else(u, block.hidden_gate, block.w_dw, block.b_dw, block.slope_dw)),
        *(hidden_list.order, hidden_list.count, z, block.hidden, tiles, *strides_of(u), *block.hidden_gate_strides),
        *(block.frames // vector, z.shape[2]),
        HIDDEN_TILES=hidden_list.per_tile,
        HAS_HIDDEN_GATE=multiplies(block.hidden_gate),
        HAS_HIDDEN_LIST=hidden_list.is_list,
        HAS_B_DW=block.b_dw is not None,
        HAS_SLOPE_DW=block.slope_dw is not None,
        **block.taps_options(),
        VECTOR=vector,
        BLOCK_T=tile.frames,
        BLOCK_H=tile.rows,
        num_warps=tile.warps,
    )
