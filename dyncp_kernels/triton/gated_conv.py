"""`gated_conv` and its gradient on the Triton kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dyncp_kernels.triton.depthwise import depthwise
from dyncp_kernels.triton.depthwise_gradient import depthwise_gradient, expansion_gradient
from dyncp_kernels.triton.fused_block import fused_block
from dyncp_kernels.triton.launches import (
    ChannelList,
    is_constant,
    kernel,
    list_of,
    strides_of,
    tiles_of,
    vector_of,
)
from dyncp_kernels.triton.pad_frames import pad_frames
from dyncp_kernels.triton.pointwise import pointwise
from dyncp_kernels.triton.tile_sizes import (
    ForwardTiles,
    FusedTile,
    ProductTile,
    RowTile,
    forward_tiles,
    fused_tile,
    gradient_tiles,
    precision_of,
)
from dyncp_kernels.triton.weight_gradient import weight_gradient

__all__ = ["gated_conv", "gated_conv_backward"]

# Programs that a product over all frames is split into at most: enough to fill a large GPU, and the same on every one.
_WEIGHT_PROGRAMS = 512


class _Block:
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
        # Columns of open channels are read in one piece each.
        gathers_columns = hidden_gate is not None and w_out.stride(0) != 1
        self.w_out = w_out.t().contiguous().t() if gathers_columns else w_out
        self.b_out = None if b_out is None else b_out.contiguous()
        self.slope_in = slope_in
        self.slope_dw = slope_dw
        self.batch, self.channels, self.frames = x.shape
        self.hidden, self.taps = w_dw.shape
        self.out_channels = w_out.shape[0]
        self.dilation = dilation
        self.reach = (self.taps - 1) * dilation
        self.left = self.reach if causal else self.reach // 2
        self.residual = residual
        self.precision = precision_of(x.dtype)
        self.x_strides = x.stride()
        self.hidden_gate_strides = strides_of(self.hidden_gate)
        self.out_gate_strides = strides_of(self.out_gate)
        self.w_in_strides = (0, 0) if w_in is None else w_in.stride()
        self.w_out_strides = self.w_out.stride()

    def or_x(self, tensor: Tensor | None) -> Tensor:
        """The tensor, or x as a placeholder that the kernel does not touch."""
        return self.x if tensor is None else tensor

    def options(self) -> dict[str, bool]:
        return {
            "HAS_B_DW": self.b_dw is not None,
            "HAS_SLOPE_IN": self.slope_in is not None,
            "HAS_SLOPE_DW": self.slope_dw is not None,
        }

    def taps_options(self) -> dict[str, int]:
        return {"TAPS": self.taps, "DILATION": self.dilation, "LEFT": self.left}


def gated_conv(
    x: Tensor,
    *tensors: Tensor | None,
    dilation: int = 1,
    causal: bool = True,
    residual: bool = True,
) -> Tensor:
    """The block's output; `tensors` are the ten that follow x in :func:`dyncp_kernels.ops.gated_conv`."""
    block = _Block(x, tensors, dilation, causal, residual)
    y = x.new_empty(block.batch, block.out_channels, block.frames)
    if y.numel() == 0:
        return y
    tile = fused_tile(block.batch, block.frames, block.channels, block.hidden, block.out_channels, block.precision)
    if tile is None or not (_is_small(block.w_in) and _is_small(block.w_out)):
        _forward_in_memory(block, y)
    else:
        _forward_on_chip(block, tile, y)
    return y


def _forward_on_chip(block: _Block, tile: FusedTile, y: Tensor) -> None:
    """The block in one kernel."""
    x = block.x
    tiles = tiles_of(block.frames, tile.frames)
    vector = vector_of(x, block.hidden_gate)
    hidden_list = list_of(block.hidden_gate, tile.frames, x)
    out_list = list_of(block.out_gate, tile.frames, x)
    kernel(fused_block)[(block.batch * tiles,)](
        *(x, block.or_x(block.hidden_gate), block.or_x(block.out_gate), block.or_x(block.w_in)),
        *(block.or_x(block.b_in), block.w_dw, block.or_x(block.b_dw), block.w_out, block.or_x(block.b_out)),
        *(block.or_x(block.slope_in), block.or_x(block.slope_dw)),
        *(hidden_list.frame_open, hidden_list.order, hidden_list.count, out_list.opened, y),
        *(block.channels, block.hidden, block.out_channels, block.frames // vector, tiles),
        *(*strides_of(x), *block.hidden_gate_strides, *block.out_gate_strides),
        *(*block.w_in_strides, *block.w_out_strides),
        HIDDEN_TILES=hidden_list.per_tile,
        OUT_TILES=out_list.per_tile,
        HAS_HIDDEN_LIST=hidden_list.is_list,
        HAS_HIDDEN_GATE=_multiplies(block.hidden_gate),
        HAS_OUT_GATE=out_list.is_list,
        HAS_W_IN=block.w_in is not None,
        HAS_B_IN=block.b_in is not None,
        HAS_B_OUT=block.b_out is not None,
        **block.options(),
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


def _as_bytes(gate: Tensor | None) -> Tensor | None:
    """Booleans as bytes: kernels move those as they are and compare once."""
    return gate.view(torch.uint8) if gate is not None and gate.dtype == torch.bool else gate


def _multiplies(gate: Tensor | None) -> bool:
    """Whether a gate's values matter beside its list: not those of booleans where a list holds for all frames."""
    return gate is not None and not (is_constant(gate) and gate.dtype == torch.uint8)


def _is_small(weight: Tensor | None) -> bool:
    """Whether 32-bit offsets reach all of a weight, as the fused kernel has them to save registers."""
    return weight is None or sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride())) < 2**31


def _forward_in_memory(block: _Block, y: Tensor) -> None:
    """The block in three kernels, with the hidden activations in memory, in the type of x."""
    x = block.x
    sizes = forward_tiles(
        *(block.batch, block.frames, block.hidden, block.out_channels, block.precision),
        per_tile=not (is_constant(block.hidden_gate) and is_constant(block.out_gate)),
    )
    hidden_list = list_of(block.hidden_gate, sizes.expand.frames, x)
    out_list = list_of(block.out_gate, sizes.project.frames, x)
    pitch = _pitch_of(block.frames)
    u = x
    if block.w_in is not None:
        u = x.new_empty(block.batch, block.hidden, pitch)
        _pointwise(
            *(_padded(x, sizes, block.precision), block.w_in, u, sizes.expand, block.precision),
            bias=block.b_in,
            activation=(block.slope_in,),
            row_list=hidden_list,
        )
    z = x.new_empty(block.batch, block.hidden, pitch)
    _depthwise(block, u, hidden_list, sizes.depthwise, z)
    _pointwise(
        *(z, block.w_out, y, sizes.project, block.precision),
        bias=block.b_out,
        row_list=out_list,
        depth_list=hidden_list,
        gate=block.out_gate,
        frame_open=hidden_list.frame_open if hidden_list.per_tile else None,
        added=x if block.residual else None,
    )


def _pitch_of(frames: int) -> int:
    """Frames between the channels of what is kept in memory, so that every channel begins with a whole vector."""
    return tiles_of(frames, 16) * 16


def _padded(
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
    pitch = _pitch_of(frames)
    padded = x.new_empty(batch, channels, pitch)
    tiles = tiles_of(pitch, sizes.pad.frames)
    kernel(pad_frames)[(batch * tiles * tiles_of(channels, sizes.pad.rows),)](
        *(x, x if gate is None else gate, x if frame_open is None else frame_open, padded, channels, tiles),
        *(*strides_of(x), *strides_of(gate), frames // vector, pitch),
        HAS_GATE=gate is not None,
        HAS_FRAME_OPEN=frame_open is not None,
        VECTOR=vector,
        BLOCK_T=sizes.pad.frames,
        BLOCK_C=sizes.pad.rows,
        num_warps=sizes.pad.warps,
    )
    return padded


def _pointwise(
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

    def or_x(tensor: Tensor | None) -> Tensor:
        return x if tensor is None else tensor

    kernel(pointwise)[(batch * tiles * tiles_of(rows, tile.rows),)](
        *(x, w, or_x(bias), x if activation is None else or_x(activation[0]), or_x(gate), or_x(frame_open)),
        *(or_x(other), row_list.order, row_list.count, depth_list.order, depth_list.count, y),
        *(rows, x.shape[1], tiles, *strides_of(x), *w.stride(), *strides_of(gate), *strides_of(other)),
        *(x.shape[2] // x_vector, y_frames // vector),
        HAS_ROW_LIST=row_list.is_list,
        ROW_TILES=row_list.per_tile,
        WRITES_CLOSED=other is not None,
        HAS_DEPTH_LIST=depth_list.is_list,
        DEPTH_TILES=depth_list.per_tile,
        HAS_BIAS=bias is not None,
        ACTIVATE=activation is not None,
        HAS_SLOPE=activation is not None and activation[0] is not None,
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


def _depthwise(block: _Block, u: Tensor, hidden_list: ChannelList, tile: RowTile, z: Tensor) -> None:
    """Write the second activation to the rows of `z` that a list names."""
    tiles = tiles_of(block.frames, tile.frames)
    vector = math.gcd(block.frames, 16)
    kernel(depthwise)[(block.batch * tiles * tiles_of(block.hidden, tile.rows),)](
        *(u, block.or_x(block.hidden_gate), block.w_dw, block.or_x(block.b_dw), block.or_x(block.slope_dw)),
        *(hidden_list.order, hidden_list.count, z, block.hidden, tiles, *strides_of(u), *block.hidden_gate_strides),
        *(block.frames // vector, z.shape[2]),
        HIDDEN_TILES=hidden_list.per_tile,
        HAS_HIDDEN_GATE=_multiplies(block.hidden_gate),
        HAS_HIDDEN_LIST=hidden_list.is_list,
        HAS_B_DW=block.b_dw is not None,
        HAS_SLOPE_DW=block.slope_dw is not None,
        **block.taps_options(),
        VECTOR=vector,
        BLOCK_T=tile.frames,
        BLOCK_H=tile.rows,
        num_warps=tile.warps,
    )


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
    block = _Block(x, tensors, dilation, causal, residual)
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

    pitch = _pitch_of(block.frames)
    padded_x = _padded(x, sizes.forward, block.precision)
    # The gradient that reaches the branch: nothing where an output channel or all hidden ones are closed.
    grad_branch = _padded(grad, sizes.forward, block.precision, block.out_gate, frame_open)
    a = x
    if block.w_in is not None:
        a = x.new_empty(block.batch, block.hidden, pitch)
        _pointwise(
            *(padded_x, block.w_in, a, sizes.forward.expand, block.precision), bias=block.b_in, row_list=hidden_list
        )
    grad_z = x.new_empty(block.batch, block.hidden, pitch)
    _pointwise(
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
    gate_or_x, slope_in, slope_dw = (block.or_x(t) for t in (block.hidden_gate, block.slope_in, block.slope_dw))
    vector = math.gcd(block.frames, 16)
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
        *(a, grad_z, gate_or_x, block.w_dw, block.or_x(block.b_dw), slope_in, slope_dw),
        *(hidden_list.order, hidden_list.count, z, grad_c, grad_gate, grad_row),
        *(block.hidden, tiles, programs, *lengths),
        HAS_B_DW=block.b_dw is not None,
        HAS_SLOPE_DW=block.slope_dw is not None,
        **options,
    )
    kernel(expansion_gradient)[grid](
        *(a, gate_or_x, block.w_dw, slope_in, hidden_list.order, hidden_list.count),
        *(grad_c, grad_a, grad_gate, grad_slope, block.hidden, tiles, *lengths),
        **options,
    )

    if wants_hidden_gate:
        results[1] = _gate_gradient(grad_gate[:, :, : block.frames], tensors[0])
    if wants_out_gate:
        gradient = torch.empty_like(grad, dtype=torch.float32, memory_format=torch.contiguous_format)
        _pointwise(
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
        _pointwise(
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
