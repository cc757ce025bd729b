"""`gated_conv` on the Triton kernels."""

from __future__ import annotations

from torch import Tensor

from dyncp_kernels.triton.block import Block, convolve_depthwise, convolve_pointwise, multiplies, padded_copy, pitch_of
from dyncp_kernels.triton.fused_block import fused_block
from dyncp_kernels.triton.launches import is_constant, kernel, list_of, or_else, strides_of, tiles_of, vector_of
from dyncp_kernels.triton.tile_sizes import FusedTile, forward_tiles, fused_tile

__all__ = ["forward_on_chip", "gated_conv"]


def gated_conv(
    x: Tensor,
    *tensors: Tensor | None,
    dilation: int = 1,
    causal: bool = True,
    residual: bool = True,
) -> Tensor:
    """The block's output; `tensors` are the ten that follow x in :func:`dyncp_kernels.ops.gated_conv`."""
    block = Block(x, tensors, dilation, causal, residual)
    y = x.new_empty(block.batch, block.out_channels, block.frames)
    if y.numel() == 0:
        return y
    tile = fused_tile(block.batch, block.frames, block.channels, block.hidden, block.out_channels, block.precision)
    if tile is None or not (_is_small(block.w_in) and _is_small(block.w_out)):
        _forward_in_memory(block, y)
    else:
        forward_on_chip(block, tile, y)
    return y


def _is_small(weight: Tensor | None) -> bool:
    """Whether 32-bit offsets reach all of a weight, as the fused kernel has them to save registers."""
    return weight is None or sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride())) < 2**31


def forward_on_chip(block: Block, tile: FusedTile, y: Tensor) -> None:
    """The block in one kernel."""
    x = block.x
    tiles = tiles_of(block.frames, tile.frames)
    vector = vector_of(x, block.hidden_gate)
    hidden_list = list_of(block.hidden_gate, tile.frames, x)
    out_list = list_of(block.out_gate, tile.frames, x)
    kernel(fused_block)[(block.batch * tiles,)](
        *(x, *or_else(x, block.hidden_gate, block.out_gate, block.w_in, block.b_in), block.w_dw),
        *or_else(x, block.b_dw, block.w_out, block.b_out, block.slope_in, block.slope_dw),
        *(hidden_list.frame_open, hidden_list.order, hidden_list.count, out_list.opened, y),
        *(block.channels, block.hidden, block.out_channels, block.frames // vector, tiles),
        *(*strides_of(x), *block.hidden_gate_strides, *block.out_gate_strides),
        *(*strides_of(block.w_in, 2), *strides_of(block.w_out, 2)),
        HIDDEN_TILES=hidden_list.per_tile,
        OUT_TILES=out_list.per_tile,
        HAS_HIDDEN_LIST=hidden_list.is_list,
        HAS_HIDDEN_GATE=multiplies(block.hidden_gate),
        HAS_OUT_GATE=out_list.is_list,
        HAS_W_IN=block.w_in is not None,
        HAS_B_IN=block.b_in is not None,
        HAS_B_OUT=block.b_out is not None,
        HAS_B_DW=block.b_dw is not None,
        HAS_SLOPE_IN=block.slope_in is not None,
        HAS_SLOPE_DW=block.slope_dw is not None,
        RESIDUAL=block.residual,
        **block.taps_options(),
        PRECISION=block.precision,
        VECTOR=vector,
        BLOCK_T=tile.frames,
        BLOCK_H=tile.hidden,
        BLOCK_C=tile.channels,
        BLOCK_O=tile.out_channels,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _forward_in_memory(block: Block, y: Tensor) -> None:
    """The block in three kernels, with the hidden activations in memory, in the type of x."""
    x = block.x
    sizes = forward_tiles(
        *(block.batch, block.frames, block.hidden, block.out_channels, block.precision),
        per_tile=not (is_constant(block.hidden_gate) and is_constant(block.out_gate)),
    )
    hidden_list = list_of(block.hidden_gate, sizes.expand.frames, x)
    out_list = list_of(block.out_gate, sizes.project.frames, x)
    pitch = pitch_of(block.frames)
    u = x
    if block.w_in is not None:
        u = x.new_empty(block.batch, block.hidden, pitch)
        convolve_pointwise(
            *(padded_copy(x, sizes, block.precision), block.w_in, u, sizes.expand, block.precision),
            bias=block.b_in,
            activation=(block.slope_in,),
            row_list=hidden_list,
        )
    z = x.new_empty(block.batch, block.hidden, pitch)
    convolve_depthwise(block, u, hidden_list, sizes.depthwise, z)
    convolve_pointwise(
        *(z, block.w_out, y, sizes.project, block.precision),
        bias=block.b_out,
        row_list=out_list,
        depth_list=hidden_list,
        gate=block.out_gate,
        frame_open=hidden_list.frame_open if hidden_list.per_tile else None,
        added=x if block.residual else None,
    )
