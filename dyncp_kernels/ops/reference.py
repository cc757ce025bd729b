"""The block in plain PyTorch: slow, obvious, correct, and the oracle of every kernel.

Both functions only ever index the rows and columns of active channels, and select gated values instead of multiplying
them by zero, so the weights of a pruned channel may hold anything, NaN included.  Gradients come from autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gated_conv_reference(
    x: Tensor,
    hidden_gate: Tensor | None,
    out_gate: Tensor | None,
    w_in: Tensor | None,
    b_in: Tensor | None,
    w_dw: Tensor,
    b_dw: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    slope_in: Tensor | None = None,
    slope_dw: Tensor | None = None,
    *,
    dilation: int = 1,
    causal: bool = True,
    residual: bool = True,
) -> Tensor:
    """One gated depthwise-separable block; see :func:`dyncp_kernels.ops.gated_conv` for the formula and the shapes."""
    compute = _compute_dtype(x)
    weights = _widen(compute, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw)
    reach = (w_dw.shape[1] - 1) * dilation
    left = reach if causal else reach // 2
    items = []
    for b in range(x.shape[0]):
        frames = x.shape[2]
        hidden = None if hidden_gate is None else hidden_gate[b].expand(-1, frames)
        out = None if out_gate is None else out_gate[b].expand(-1, frames)
        items.append(_item(x[b].to(compute), hidden, out, weights, dilation, left, reach - left, residual))
    y = torch.stack(items) if items else x.new_zeros(0, w_out.shape[0], x.shape[2])
    return y.to(x.dtype)


def gated_conv_step_reference(
    x: Tensor,
    history: Tensor,
    hidden_gate: Tensor | None,
    out_gate: Tensor | None,
    w_in: Tensor | None,
    b_in: Tensor | None,
    w_dw: Tensor,
    b_dw: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    slope_in: Tensor | None = None,
    slope_dw: Tensor | None = None,
    *,
    dilation: int = 1,
    residual: bool = True,
) -> tuple[Tensor, Tensor]:
    """One frame of the causal block; see :func:`dyncp_kernels.ops.gated_conv_step`."""
    compute = _compute_dtype(x)
    weights = _widen(compute, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw)
    outputs, histories = [], []
    for b in range(x.shape[0]):
        hidden = None if hidden_gate is None else hidden_gate[b][:, None]
        out = None if out_gate is None else out_gate[b][:, None]
        frame = x[b].to(compute)[:, None]
        rows = _active(hidden, w_dw)
        u = torch.zeros(w_dw.shape[0], 1, dtype=compute, device=x.device)
        u = u.index_copy(0, rows, _expand(frame, hidden, weights, rows))
        window = torch.cat([history[b].to(compute), u], 1)
        outputs.append(_rest(window[rows], rows, frame, hidden, out, weights, dilation, residual)[:, 0])
        histories.append(window[:, 1:])
    if not outputs:
        return x.new_zeros(0, w_out.shape[0]), history.clone()
    return torch.stack(outputs).to(x.dtype), torch.stack(histories).to(history.dtype)


Weights = tuple[Tensor | None, ...]


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _widen(dtype: torch.dtype, *tensors: Tensor | None) -> Weights:
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def _item(
    x: Tensor,
    hidden_gate: Tensor | None,
    out_gate: Tensor | None,
    weights: Weights,
    dilation: int,
    left: int,
    right: int,
    residual: bool,
) -> Tensor:
    """One batch item; x is (C, T) and the gates are (H, T) and (Co, T)."""
    w_dw = weights[2]
    assert w_dw is not None
    rows = _active(hidden_gate, w_dw)
    u = _expand(x, hidden_gate, weights, rows)
    padded = torch.nn.functional.pad(u, (left, right))
    return _rest(padded, rows, x, hidden_gate, out_gate, weights, dilation, residual)


def _expand(x: Tensor, hidden_gate: Tensor | None, weights: Weights, rows: Tensor) -> Tensor:
    """U = m_h * act(W_in x + b_in), the active rows."""
    w_in, b_in, _, _, _, _, slope_in, _ = weights
    if w_in is None:
        return _gate(x[rows], _rows(hidden_gate, rows))
    a = w_in[rows] @ x
    if b_in is not None:
        a = a + b_in[rows, None]
    return _gate(_activate(a, slope_in), _rows(hidden_gate, rows))


def _rest(
    u: Tensor,
    rows: Tensor,
    x: Tensor,
    hidden_gate: Tensor | None,
    out_gate: Tensor | None,
    weights: Weights,
    dilation: int,
    residual: bool,
) -> Tensor:
    """From the padded active rows of u on: depthwise convolution, projection, output gate, residual."""
    _, _, w_dw, b_dw, w_out, b_out, _, slope_dw = weights
    assert w_dw is not None
    assert w_out is not None
    frames = x.shape[1]
    z = torch.zeros(len(rows), frames, dtype=x.dtype, device=x.device)
    for tap in range(w_dw.shape[1]):
        z = z + w_dw[rows, tap, None] * u[:, tap * dilation : tap * dilation + frames]
    if b_dw is not None:
        z = z + b_dw[rows, None]
    gate = _rows(hidden_gate, rows)
    z = _gate(_activate(z, slope_dw), gate)

    out_rows = _active(out_gate, w_out)
    s = _project(w_out[out_rows][:, rows], z, gate)
    if b_out is not None:
        s = s + b_out[out_rows, None]
    branch = torch.zeros(w_out.shape[0], frames, dtype=x.dtype, device=x.device)
    branch = branch.index_copy(0, out_rows, _gate(s, _rows(out_gate, out_rows)))
    if hidden_gate is not None:
        branch = torch.where((hidden_gate != 0).any(0), branch, torch.zeros_like(branch))
    return x + branch if residual else branch


def _active(gate: Tensor | None, weight: Tensor) -> Tensor:
    """Channels to compute: those open at some frame.  The gradient of a floating gate needs all of them."""
    if gate is None or gate.requires_grad:
        return torch.arange(weight.shape[0], device=weight.device)
    return (gate != 0).any(1).nonzero()[:, 0]


def _rows(gate: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if gate is None else gate[rows]


def _activate(value: Tensor, slope: Tensor | None) -> Tensor:
    return torch.relu(value) if slope is None else torch.where(value > 0, value, slope.reshape(()) * value)


def _gate(value: Tensor, gate: Tensor | None) -> Tensor:
    if gate is None:
        return value
    if gate.requires_grad:
        return value * gate.to(value.dtype)
    gated = value if gate.dtype == torch.bool else value * gate.to(value.dtype)
    return torch.where(gate != 0, gated, torch.zeros_like(gated))


def _project(w: Tensor, z: Tensor, gate: Tensor | None) -> Tensor:
    """W_out z.  A matrix product also multiplies the zeros of pruned frames, which only finite weights allow."""
    if gate is None or bool(torch.isfinite(w).all()):
        return w @ z
    products = w[:, :, None] * z[None]
    return torch.where(gate != 0, products, torch.zeros_like(products)).sum(1)
