"""`gated_conv_backward` on the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from dyncp_kernels.triton.block import Block, convolve_pointwise, padded_copy, pitch_of
from dyncp_kernels.triton.depthwise_gradient import depthwise_gradient, expansion_gradient
from dyncp_kernels.triton.launches import (
    common_vector,
    is_constant,
    kernel,
    list_of,
    or_else,
    strides_of,
    tiles_of,
    vector_of,
)
from dyncp_kernels.triton.tile_sizes import ProductTile, gradient_tiles
from dyncp_kernels.triton.weight_gradient import weight_gradient

__all__ = ["gated_conv_backward"]

# Programs that a product over all frames is split into at most: enough to fill a large GPU, and the same on every one.
_WEIGHT_PROGRAMS = 512


def gated_conv_backward(
    grad: Tensor,
    x: Tensor,
    *tensors: Tensor | None,
    dilation: int = 1,
    causal: bool = True,
    residual: bool = True,
    wanted: int = 2047,
) -> tuple[Tensor, ...]:
    """Gradients of x and of the ten tensors that follow it; an empty tensor where none is wanted or there is none.

    The hidden activations are computed again and kept in memory between the kernels, in the type of x.  A gradient of
    the hidden gate needs the values of closed channels too; without one they are skipped as in the forward.
    """
    inputs = (x, *tensors)
    wants = [
        tensor is not None and tensor.is_floating_point() and bool(wanted >> i & 1) for i, tensor in enumerate(inputs)
    ]
    results = [x.new_empty(0) if not want else None for want in wants]
    block = Block(x, tensors, dilation, causal, residual)
    if block.batch * block.frames == 0 or block.out_channels == 0:
        return tuple(
            torch.zeros_like(tensor) if want and tensor is not None else x.new_empty(0)
            for want, tensor in zip(wants, inputs)
        )
    _, wants_hidden_gate, wants_out_gate, *_ = wants
    hidden_gate = None if wants_hidden_gate else block.hidden_gate
    sizes = gradient_tiles(
        *(block.batch, block.frames, block.channels, block.hidden, block.out_channels, block.precision),
        per_tile=not (is_constant(hidden_gate) and is_constant(block.out_gate)),
    )
    hidden_list = list_of(hidden_gate, sizes.rows.frames, x)
    out_list = list_of(block.out_gate, sizes.rows.frames, x)
    frame_open = None
    if block.hidden_gate is not None:
        frame_open = (block.hidden_gate != 0).any(1).to(torch.uint8).expand(block.batch, block.frames).contiguous()

    pitch = pitch_of(block.frames)
    # The gradient that reaches the branch: nothing where an output channel or all hidden ones are closed.
    grad_branch = padded_copy(grad, sizes.forward, block.precision, block.out_gate, frame_open)
    a = padded_x = x
    if block.w_in is not None:
        padded_x = padded_copy(x, sizes.forward, block.precision)
        a = x.new_empty(block.batch, block.hidden, pitch)
        convolve_pointwise(
            *(padded_x, block.w_in, a, sizes.forward.expand, block.precision), bias=block.b_in, row_list=hidden_list
        )
    grad_z = x.new_empty(block.batch, block.hidden, pitch)
    convolve_pointwise(
        *(grad_branch, block.w_out.t(), grad_z, sizes.forward.expand, block.precision),
        row_list=hidden_list,
        depth_list=out_list,
    )

    # Rows that no list names hold zeros, so that sums over frames need no lists.
    new = torch.zeros_like if hidden_list.is_list else torch.empty_like
    z, grad_a, grad_c = new(grad_z), new(grad_z), torch.empty_like(grad_z)
    grad_gate = torch.empty_like(z, dtype=torch.float32) if wants_hidden_gate else z
    tiles = tiles_of(block.frames, sizes.rows.frames)
    programs = block.batch * tiles
    grad_row = x.new_zeros(block.taps + 2, programs, block.hidden, dtype=torch.float32)
    grad_slope = x.new_zeros(programs, block.hidden, dtype=torch.float32)
    gate, slope_in, b_dw, slope_dw = or_else(x, block.hidden_gate, block.slope_in, block.b_dw, block.slope_dw)
    vector = common_vector(block.frames)
    lengths = (*strides_of(a), *block.hidden_gate_strides, block.frames // vector, pitch)
    options = {
        "HIDDEN_TILES": hidden_list.per_tile,
        "HAS_HIDDEN_GATE": block.hidden_gate is not None,
        "HAS_HIDDEN_LIST": hidden_list.is_list,
        "HAS_W_IN": block.w_in is not None,
        "HAS_SLOPE_IN": block.slope_in is not None,
        "GATE_GRADIENT": wants_hidden_gate,
        **block.taps_options(),
        "VECTOR": vector,
        "BLOCK_T": sizes.rows.frames,
        "BLOCK_H": sizes.rows.rows,
        "num_warps": sizes.rows.warps,
    }
    grid = (programs * tiles_of(block.hidden, sizes.rows.rows),)
    kernel(depthwise_gradient)[grid](
        *(a, grad_z, gate, block.w_dw, b_dw, slope_in, slope_dw),
        *(hidden_list.order, hidden_list.count, z, grad_c, grad_gate, grad_row),
        *(block.hidden, tiles, programs, *lengths),
        HAS_B_DW=block.b_dw is not None,
        HAS_SLOPE_DW=block.slope_dw is not None,
        **options,
    )
    kernel(expansion_gradient)[grid](
        *(a, gate, block.w_dw, slope_in, hidden_list.order, hidden_list.count),
        *(grad_c, grad_a, grad_gate, grad_slope, block.hidden, tiles, *lengths),
        **options,
    )

    if wants_hidden_gate:
        results[1] = _gate_gradient(grad_gate[:, :, : block.frames], tensors[0])
    if wants_out_gate:
        gradient = torch.empty_like(grad, dtype=torch.float32, memory_format=torch.contiguous_format)
        convolve_pointwise(
            *(z, block.w_out, gradient, sizes.forward.project, block.precision),
            bias=block.b_out,
            depth_list=hidden_list,
            frame_open=frame_open,
            factor=grad,
        )
        results[2] = _gate_gradient(gradient, tensors[1])
    if wants[0] and block.w_in is None:
        grad_u = grad_a[:, :, : block.frames]
        results[0] = grad_u + grad if residual else grad_u
    elif wants[0] and block.w_in is not None:
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        convolve_pointwise(
            *(grad_a, block.w_in.t(), grad_x, sizes.grad_x, block.precision),
            depth_list=hidden_list,
            added=grad if residual else None,
        )
        results[0] = grad_x
    if block.w_in is not None and (wants[3] or wants[4]):
        product, row_sum = _weight_gradient(grad_a, padded_x, sizes.weights, block.precision, with_sum=wants[4])
        results[3] = product if wants[3] else results[3]
        results[4] = row_sum if wants[4] else results[4]
    if wants[7] or wants[8]:
        product, row_sum = _weight_gradient(grad_branch, z, sizes.weights, block.precision, with_sum=wants[8])
        results[7] = product if wants[7] else results[7]
        results[8] = row_sum if wants[8] else results[8]
    sums = grad_row.sum(1)
    if wants[5]:
        results[5] = sums[: block.taps].t().contiguous()
    if wants[6]:
        results[6] = sums[block.taps]
    if wants[9]:
        results[9] = grad_slope.sum()
    if wants[10]:
        results[10] = sums[block.taps + 1].sum()
    return tuple(
        result if not want or source is None else result.to(x.dtype).reshape(source.shape).contiguous()
        for want, result, source in zip(wants, results, inputs)
        if result is not None
    )


def _gate_gradient(gradient: Tensor, gate: Tensor | None) -> Tensor:
    """Summed over time where the gate is constant over time."""
    assert gate is not None
    return gradient.sum(2, keepdim=True) if gate.shape[2] == 1 else gradient


def _weight_gradient(
    left: Tensor, right: Tensor, tile: ProductTile, precision: str, *, with_sum: bool
) -> tuple[Tensor, Tensor]:
    """Sums over batch and frames of left times right, and of left, as (rows, columns) and (rows,)."""
    batch, rows, frames = left.shape
    columns = right.shape[1]
    # Frames of one that the other does not have are not real ones.
    frames = min(frames, right.shape[2])
    vector = min(vector_of(left), vector_of(right))
    tiles = tiles_of(frames, tile.depth)
    programs = batch * tiles
    # Without columns there still is the sum of the rows.
    row_blocks, column_blocks = tiles_of(rows, tile.rows), max(1, tiles_of(columns, tile.frames))
    parts = max(1, min(programs, _WEIGHT_PROGRAMS // (row_blocks * column_blocks)))
    product = left.new_empty(parts, rows, columns, dtype=torch.float32)
    row_sum = left.new_empty(parts, rows, dtype=torch.float32)
    kernel(weight_gradient)[(row_blocks, column_blocks, parts)](
        *(left, right, product, row_sum, rows, columns, tiles, programs, parts),
        *(*strides_of(left), *strides_of(right), frames // vector),
        HAS_ROW_SUM=with_sum,
        PRECISION=precision,
        VECTOR=vector,
        BLOCK_T=tile.depth,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.frames,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return product.sum(0), row_sum.sum(0)
