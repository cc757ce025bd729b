"""`gated_conv` and its gradient on the Triton kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dyncp_kernels.triton.depthwise import depthwise
from dyncp_kernels.triton.expand import expand
from dyncp_kernels.triton.fused_block import fused_block
from dyncp_kernels.triton.hidden_gradient import hidden_gradient
from dyncp_kernels.triton.input_gradient import expansion_gradient, input_gradient
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
from dyncp_kernels.triton.project import project
from dyncp_kernels.triton.tile_sizes import (
    ForwardTiles,
    FusedTile,
    GradientTile,
    ProductTile,
    RowTile,
    forward_tiles,
    fused_tile,
    gradient_tile,
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
    tile = fused_tile(block.channels, block.hidden, block.out_channels, block.precision)
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
    per_tile = not (is_constant(block.hidden_gate) and is_constant(block.out_gate))
    sizes = forward_tiles(
        block.batch, block.frames, block.hidden, block.out_channels, block.x.element_size(), block.precision, per_tile
    )
    hidden_list = list_of(block.hidden_gate, sizes.expand.frames, block.x)
    out_list = list_of(block.out_gate, sizes.project.frames, block.x)
    # Rows of whole vectors: neighbouring threads move 16 bytes each.
    pitch = tiles_of(block.frames, 16) * 16
    u = block.x
    if block.w_in is not None:
        u = block.x.new_empty(block.batch, block.hidden, pitch)
        _expand(block, _padded(block, sizes, pitch), hidden_list, sizes.expand, u, activate=True)
    z = block.x.new_empty(block.batch, block.hidden, pitch)
    _depthwise(block, u, hidden_list, sizes.depthwise, z)
    _project(block, z, hidden_list, out_list, sizes.project, y)


def _padded(block: _Block, sizes: ForwardTiles, pitch: int) -> Tensor:
    """X, or a copy whose rows are read in whole vectors where that is less work."""
    x = block.x
    vector = vector_of(x)
    if not sizes.pads_x or vector * x.element_size() >= 16:
        return x
    padded = x.new_empty(block.batch, block.channels, pitch)
    tiles = tiles_of(pitch, sizes.pad.frames)
    kernel(pad_frames)[(block.batch * tiles * tiles_of(block.channels, sizes.pad.rows),)](
        *(x, padded, block.channels, tiles, *strides_of(x), block.frames // vector, pitch),
        VECTOR=vector,
        BLOCK_T=sizes.pad.frames,
        BLOCK_C=sizes.pad.rows,
        num_warps=sizes.pad.warps,
    )
    return padded


def _expand(
    block: _Block, x: Tensor, hidden_list: ChannelList, tile: ProductTile, a: Tensor, *, activate: bool
) -> None:
    """Write W_in x + b_in, activated or as it is, to the rows of `a` that a list names."""
    tiles = tiles_of(block.frames, tile.frames)
    vector = vector_of(x)
    kernel(expand)[(block.batch * tiles * tiles_of(block.hidden, tile.rows),)](
        *(x, block.w_in, block.or_x(block.b_in), block.or_x(block.slope_in), hidden_list.order, hidden_list.count, a),
        *(block.channels, block.hidden, tiles, *strides_of(x), *block.w_in_strides),
        *(x.shape[2] // vector, a.shape[2]),
        HIDDEN_TILES=hidden_list.per_tile,
        HAS_LIST=hidden_list.is_list,
        HAS_B_IN=block.b_in is not None,
        ACTIVATE=activate,
        HAS_SLOPE_IN=block.slope_in is not None,
        PRECISION=block.precision,
        VECTOR=vector,
        BLOCK_T=tile.frames,
        BLOCK_H=tile.rows,
        BLOCK_C=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _depthwise(block: _Block, u: Tensor, hidden_list: ChannelList, tile: RowTile, z: Tensor) -> None:
    """Write the second activation to the rows of `z` that a list names."""
    gate = block.hidden_gate
    tiles = tiles_of(block.frames, tile.frames)
    vector = math.gcd(block.frames, 16)
    kernel(depthwise)[(block.batch * tiles * tiles_of(block.hidden, tile.rows),)](
        *(u, block.or_x(gate), block.w_dw, block.or_x(block.b_dw), block.or_x(block.slope_dw)),
        *(hidden_list.order, hidden_list.count, z, block.hidden, tiles, *strides_of(u), *block.hidden_gate_strides),
        *(block.frames // vector, z.shape[2]),
        HIDDEN_TILES=hidden_list.per_tile,
        HAS_HIDDEN_GATE=_multiplies(gate),
        HAS_HIDDEN_LIST=hidden_list.is_list,
        HAS_B_DW=block.b_dw is not None,
        HAS_SLOPE_DW=block.slope_dw is not None,
        **block.taps_options(),
        VECTOR=vector,
        BLOCK_T=tile.frames,
        BLOCK_H=tile.rows,
        num_warps=tile.warps,
    )


def _project(
    block: _Block,
    z: Tensor,
    hidden_list: ChannelList,
    out_list: ChannelList,
    tile: ProductTile,
    y: Tensor,
    grad: Tensor | None = None,
    frame_open: Tensor | None = None,
) -> None:
    """Write the output to y; or, given the gradient of the output, that of the output gate (float32)."""
    is_output = grad is None
    if is_output and hidden_list.per_tile:
        frame_open = hidden_list.frame_open
    tiles = tiles_of(block.frames, tile.frames)
    vector = vector_of(block.x, block.out_gate if is_output else None)
    kernel(project)[(block.batch * tiles * tiles_of(block.out_channels, tile.rows),)](
        *(block.x, z, block.or_x(grad), block.or_x(block.out_gate if is_output else None)),
        *(block.w_out, block.or_x(block.b_out), block.or_x(frame_open)),
        *(hidden_list.order, hidden_list.count, out_list.order, out_list.count, y),
        *(block.hidden, block.out_channels, block.frames // vector, tiles, *strides_of(block.x), *strides_of(z)),
        *((0, 0, 0) if grad is None else grad.stride()),
        *(*block.out_gate_strides, *block.w_out_strides, z.shape[2]),
        HIDDEN_TILES=hidden_list.per_tile,
        OUT_TILES=out_list.per_tile,
        HAS_HIDDEN_LIST=hidden_list.is_list,
        HAS_OUT_GATE=out_list.is_list,
        HAS_FRAME_OPEN=frame_open is not None,
        HAS_B_OUT=block.b_out is not None,
        RESIDUAL=block.residual and is_output,
        GATE_GRADIENT=not is_output,
        PRECISION=block.precision,
        VECTOR=vector,
        BLOCK_T=tile.frames,
        BLOCK_H=tile.depth,
        BLOCK_O=tile.rows,
        num_warps=tile.warps,
        num_stages=tile.stages,
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

    The hidden activations are computed again, in float32, and kept in memory between the kernels.  A gradient of the
    hidden gate needs the values of closed channels too; without one they are skipped as in the forward.
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
    sizes = gradient_tile(block.channels, block.hidden, block.out_channels, block.precision)
    tiles = tiles_of(block.frames, sizes.frames)
    programs = block.batch * tiles
    _, wants_hidden_gate, wants_out_gate, *_ = wants

    hidden_list = list_of(None if wants_hidden_gate else block.hidden_gate, sizes.frames, x)
    out_list = list_of(block.out_gate, sizes.frames, x)
    frame_open = x
    if block.hidden_gate is not None:
        frame_open = (block.hidden_gate != 0).any(1).to(torch.uint8).expand(block.batch, block.frames).contiguous()
    a = x
    if block.w_in is not None:
        a = x.new_empty(block.batch, block.hidden, block.frames, dtype=torch.float32)
        _expand(block, x, hidden_list, sizes.expand, a, activate=False)

    hidden_shape = (block.batch, block.hidden, block.frames)
    z = x.new_empty(hidden_shape, dtype=torch.float32)
    grad_c = torch.empty_like(z)
    grad_gate = torch.empty_like(z) if wants_hidden_gate else z
    # Rows that no list names keep their zeros.
    grad_row = x.new_zeros(block.taps + 2, programs, block.hidden, dtype=torch.float32)
    lists = (hidden_list.order, hidden_list.count, out_list.order, out_list.count)
    hidden_options = {
        "HIDDEN_TILES": hidden_list.per_tile,
        "HAS_HIDDEN_GATE": block.hidden_gate is not None,
        "HAS_HIDDEN_LIST": hidden_list.is_list,
    }
    launch_options = {"num_warps": sizes.warps, "num_stages": sizes.stages}
    hidden_grid = (programs, tiles_of(block.hidden, sizes.hidden))
    kernel(hidden_gradient)[(hidden_grid[0] * hidden_grid[1],)](
        *(a, grad, frame_open, block.or_x(block.hidden_gate), block.or_x(block.out_gate)),
        *(block.w_dw, block.or_x(block.b_dw), block.w_out, block.or_x(block.slope_in), block.or_x(block.slope_dw)),
        *(*lists, z, grad_c, grad_gate, grad_row),
        *(block.hidden, block.out_channels, block.frames, tiles, programs),
        *(*a.stride(), *grad.stride(), *block.hidden_gate_strides, *block.out_gate_strides, *block.w_out_strides),
        **hidden_options,
        OUT_TILES=out_list.per_tile,
        HAS_OUT_GATE=block.out_gate is not None,
        HAS_W_IN=block.w_in is not None,
        **block.options(),
        GATE_GRADIENT=wants_hidden_gate,
        **block.taps_options(),
        PRECISION=block.precision,
        BLOCK_T=sizes.frames,
        BLOCK_H=sizes.hidden,
        BLOCK_O=sizes.out_channels,
        **launch_options,
    )
    sums = grad_row.sum(1)

    if wants_out_gate:
        gradient = x.new_empty(block.batch, block.out_channels, block.frames, dtype=torch.float32)
        opened = None if block.hidden_gate is None else frame_open
        _project(block, z, hidden_list, list_of(None, 0, x), sizes.project, gradient, grad, opened)
        results[2] = _gate_gradient(gradient, tensors[1])

    # Without an expansion this is the gradient of x, which has to be 0 where nothing is written.
    grad_a = torch.empty_like(z) if block.w_in is not None else torch.zeros_like(z)
    grad_slope = x.new_zeros(programs, block.hidden, dtype=torch.float32)
    kernel(expansion_gradient)[hidden_grid](
        *(a, block.or_x(block.hidden_gate), block.w_dw, block.or_x(block.slope_in)),
        *(hidden_list.order, hidden_list.count, grad_c, grad_a, grad_gate, grad_slope),
        *(block.hidden, block.frames, tiles, *a.stride(), *block.hidden_gate_strides),
        **hidden_options,
        HAS_W_IN=block.w_in is not None,
        HAS_SLOPE_IN=block.slope_in is not None,
        GATE_GRADIENT=wants_hidden_gate,
        **block.taps_options(),
        BLOCK_T=sizes.frames,
        BLOCK_H=sizes.hidden,
        **launch_options,
    )
    if wants_hidden_gate:
        results[1] = _gate_gradient(grad_gate, tensors[0])

    if wants[0] and block.w_in is None:
        results[0] = (grad_a + grad if residual else grad_a).to(x.dtype)
    elif wants[0]:
        results[0] = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        kernel(input_gradient)[(programs * tiles_of(block.channels, sizes.channels),)](
            *(grad, grad_a, block.or_x(block.hidden_gate), block.w_in, hidden_list.order, hidden_list.count),
            *(results[0], block.channels, block.hidden, block.frames, tiles),
            *(*grad.stride(), *block.hidden_gate_strides, *block.w_in_strides),
            **hidden_options,
            RESIDUAL=residual,
            PRECISION=block.precision,
            BLOCK_T=sizes.frames,
            BLOCK_H=sizes.hidden,
            BLOCK_C=sizes.channels,
            **launch_options,
        )

    if block.w_in is not None and (wants[3] or wants[4]):
        product, row_sum = _weight_gradient(
            *(block, sizes, grad_a, x, block.hidden_gate, None, None), multiply_left=False, with_sum=wants[4]
        )
        results[3] = product if wants[3] else results[3]
        results[4] = row_sum if wants[4] else results[4]
    if wants[7] or wants[8]:
        opened = None if block.hidden_gate is None else frame_open
        product, row_sum = _weight_gradient(
            *(block, sizes, grad, z, block.out_gate, block.hidden_gate, opened),
            multiply_left=True,
            with_sum=wants[8],
        )
        results[7] = product if wants[7] else results[7]
        results[8] = row_sum if wants[8] else results[8]
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
    block: _Block,
    sizes: GradientTile,
    left: Tensor,
    right: Tensor,
    left_gate: Tensor | None,
    right_gate: Tensor | None,
    frame_open: Tensor | None,
    *,
    multiply_left: bool,
    with_sum: bool,
) -> tuple[Tensor, Tensor]:
    """Sums over batch and frames of left times right, and of left, as (rows, columns) and (rows,)."""
    rows, columns = left.shape[1], right.shape[1]
    block_m = sizes.hidden if rows == block.hidden else min(sizes.out_channels, 32)
    block_n = min(sizes.channels, 64)
    tiles = tiles_of(block.frames, sizes.frames)
    programs = block.batch * tiles
    # Without columns there still is the sum of the rows.
    row_blocks, column_blocks = tiles_of(rows, block_m), max(1, tiles_of(columns, block_n))
    parts = max(1, min(programs, _WEIGHT_PROGRAMS // (row_blocks * column_blocks)))
    product = left.new_empty(parts, rows, columns, dtype=torch.float32)
    row_sum = left.new_empty(parts, rows, dtype=torch.float32)
    kernel(weight_gradient)[(row_blocks, column_blocks, parts)](
        *(left, right, block.or_x(left_gate), block.or_x(right_gate), block.or_x(frame_open), product, row_sum),
        *(rows, columns, block.frames, tiles, programs, parts, *left.stride(), *right.stride()),
        *(*strides_of(left_gate), *strides_of(right_gate)),
        HAS_LEFT_GATE=left_gate is not None,
        MULTIPLY_LEFT=multiply_left and left_gate is not None,
        HAS_RIGHT_GATE=right_gate is not None,
        HAS_FRAME_OPEN=frame_open is not None,
        HAS_ROW_SUM=with_sum,
        PRECISION=block.precision,
        BLOCK_T=sizes.frames,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=2 * sizes.warps,
        num_stages=sizes.stages,
    )
    return product.sum(0), row_sum.sum(0)
