"""`gated_conv_step` and `gated_conv_step_` on the Triton kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from dyncp_kernels.triton.launches import kernel, or_else, tiles_of
from dyncp_kernels.triton.step import step
from dyncp_kernels.triton.tile_sizes import StepTile, precision_of, step_tile

__all__ = ["gated_conv_step", "gated_conv_step_"]


def gated_conv_step(
    x: Tensor, history: Tensor, *tensors: Tensor | None, dilation: int = 1, residual: bool = True
) -> tuple[Tensor, Tensor]:
    """One frame; `tensors` are the ten that follow the history in :func:`dyncp_kernels.ops.gated_conv_step`."""
    updated = torch.empty(history.shape, dtype=history.dtype, device=history.device)
    return _launch(x, history, updated, _tile_of(x, history, tensors), tensors, dilation, residual), updated


def gated_conv_step_(
    x: Tensor, history: Tensor, *tensors: Tensor | None, dilation: int = 1, residual: bool = True
) -> Tensor:
    """The same, writing the new history over the old one: in the same launch where a program has all of a row's use."""
    tile = _tile_of(x, history, tensors)
    has_all = _rows_of(tensors[6]) <= tile.out_channels and history.shape[2] - 1 <= tile.history
    if has_all and history.is_contiguous():
        return _launch(x, history, history, tile, tensors, dilation, residual)
    y, updated = gated_conv_step(x, history, *tensors, dilation=dilation, residual=residual)
    history.copy_(updated)
    return y


def _rows_of(weight: Tensor | None) -> int:
    assert weight is not None
    return weight.shape[0]


def _tile_of(x: Tensor, history: Tensor, tensors: tuple[Tensor | None, ...]) -> StepTile:
    streams, channels = x.shape
    _, hidden, reach = history.shape
    return step_tile(streams, channels, hidden, _rows_of(tensors[6]), reach, is_gated=tensors[0] is not None)


def _launch(
    x: Tensor,
    history: Tensor,
    updated: Tensor,
    tile: StepTile,
    tensors: tuple[Tensor | None, ...],
    dilation: int,
    residual: bool,
) -> Tensor:
    """The output of one frame; the new history goes to `updated`, which may be the old one."""
    hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw = tensors
    assert w_dw is not None
    assert w_out is not None
    streams, channels = x.shape
    hidden, taps = w_dw.shape
    out_channels = w_out.shape[0]
    y = x.new_empty(streams, out_channels)
    if streams == 0:
        return y
    # Without output channels there still is the history.
    grid = (tiles_of(streams, tile.streams), max(1, tiles_of(out_channels, tile.out_channels)))
    # Memory in which each program lists its open channels.
    order = x if hidden_gate is None else x.new_empty(*grid, hidden, dtype=torch.int32)
    b_in, b_dw, b_out = (None if bias is None else bias.contiguous() for bias in (b_in, b_dw, b_out))
    kernel(step)[grid](
        *(x, history, *or_else(x, hidden_gate, out_gate, w_in, b_in), w_dw.contiguous()),
        *or_else(x, b_dw, w_out, b_out, slope_in, slope_dw),
        *(order, y, updated, streams, channels, hidden, out_channels, *x.stride(), *history.stride()),
        *((0, 0) if hidden_gate is None else hidden_gate.stride()),
        *((0, 0) if out_gate is None else out_gate.stride()),
        *((0, 0) if w_in is None else w_in.stride()),
        *w_out.stride(),
        HAS_HIDDEN_GATE=hidden_gate is not None,
        HAS_OUT_GATE=out_gate is not None,
        HAS_W_IN=w_in is not None,
        HAS_B_IN=b_in is not None,
        HAS_B_DW=b_dw is not None,
        HAS_B_OUT=b_out is not None,
        HAS_SLOPE_IN=slope_in is not None,
        HAS_SLOPE_DW=slope_dw is not None,
        RESIDUAL=residual,
        TAPS=taps,
        DILATION=dilation,
        PRECISION=precision_of(x.dtype),
        IN_PLACE=updated is history,
        BLOCK_S=tile.streams,
        BLOCK_H=tile.hidden,
        BLOCK_C=tile.channels,
        BLOCK_O=tile.out_channels,
        BLOCK_R=tile.history,
        BLOCK_N=tile.gates,
        num_warps=tile.warps,
        num_stages=2,
    )
    return y
