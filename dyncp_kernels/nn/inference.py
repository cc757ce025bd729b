"""Conv-FSENet for inference: BatchNorm folded into the convolutions, blocks run by ``torch.ops.dyncp.gated_conv``."""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyncp_kernels.nn.block import BlockGates, GatedBlock
from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.conv_fsenet import ConvFSENet, check_features
from dyncp_kernels.nn.gate import ChannelGate, StaticGate
from dyncp_kernels.nn.macs import macs_per_frame
from dyncp_kernels.ops import gated_conv, gated_conv_step, pointwise

__all__ = ["FoldedBlock", "InferenceConvFSENet", "StreamState"]


class StreamState(NamedTuple):
    """What a stream remembers between frames: depthwise histories (B, H, (K - 1) * d) and gate poolings, per block."""

    histories: list[Tensor]
    pools: list[dict[str, Tensor]]


def _folded(weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight (out, n) and bias (out,) of the convolution that equals convolution plus BatchNorm."""
    # In float64, so that folding adds no rounding of its own.
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shifted = scale * (bias.double() - norm.running_mean.double()) + norm.bias.double()
    return (scale[:, None] * weight.double()).to(weight.dtype), shifted.to(bias.dtype)


class FoldedBlock(nn.Module):
    """One block as the op takes it; all tensors are buffers.

    Args:
        block: the trained block.
    """

    w_in: Tensor
    b_in: Tensor
    w_dw: Tensor
    b_dw: Tensor
    w_out: Tensor
    b_out: Tensor
    slope_in: Tensor | None
    slope_dw: Tensor | None

    def __init__(self, block: GatedBlock):
        super().__init__()
        w_in, b_in = _folded(block.expand.weight, block.expand.bias, block.norm_in)
        w_dw, b_dw = _folded(block.depthwise.weight, block.depthwise.bias, block.norm_dw)
        tensors: dict[str, Tensor | None] = {
            "w_in": w_in,
            "b_in": b_in,
            "w_dw": w_dw,
            "b_dw": b_dw,
            "w_out": block.project.weight,
            "b_out": block.project.bias,
            "slope_in": block.act_in.weight if isinstance(block.act_in, nn.PReLU) else None,
            "slope_dw": block.act_dw.weight if isinstance(block.act_dw, nn.PReLU) else None,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        self.dilation = block.depthwise.dilation
        self.causal = block.causal
        self.site = block.site
        self.split_gates = block.split_gates
        self.gate: ChannelGate | StaticGate | None = copy.deepcopy(block.gate)
        if self.gate is not None:
            self.gate.requires_grad_(False).eval()

    def gates(self, x: Tensor, shift: float) -> BlockGates:
        """Boolean gates for the block's input (B, C, T)."""
        return self.split_gates(None if self.gate is None else self.gate.decide(x, shift))

    def forward(self, x: Tensor, shift: float = 0.0) -> tuple[Tensor, BlockGates]:
        """Run the block on (B, C, T); returns (B, C, T) and the boolean gates."""
        gates = self.gates(x, shift)
        y = gated_conv(
            x,
            gates.hidden,
            gates.out,
            self.w_in,
            self.b_in,
            self.w_dw,
            self.b_dw,
            self.w_out,
            self.b_out,
            slope_in=self.slope_in,
            slope_dw=self.slope_dw,
            dilation=self.dilation,
            causal=self.causal,
        )
        return y, gates

    def step(
        self, x: Tensor, history: Tensor, pool: dict[str, Tensor], shift: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], BlockGates]:
        """Run one frame (B, C); returns the output, the next history and pooling state, and the gates."""
        decided = None
        if self.gate is not None:
            decided, pool = self.gate.step(x, pool, shift)
        gates = self.split_gates(decided)
        y, history = gated_conv_step(
            x,
            history,
            gates.hidden,
            gates.out,
            self.w_in,
            self.b_in,
            self.w_dw,
            self.b_dw,
            self.w_out,
            self.b_out,
            slope_in=self.slope_in,
            slope_dw=self.slope_dw,
            dilation=self.dilation,
        )
        return y, history, pool, gates


class InferenceConvFSENet(nn.Module):
    """Conv-FSENet with folded BatchNorm; a channel that a gate drops is not computed and its weights are not read.

    Make one with :meth:`ConvFSENet.fold`.

    Args:
        config: geometry.
        blocks: the folded blocks.
        front: weight (C, bins) and bias (C,).
        back: weight (bins, C) and bias (bins,).
        calibration: as in :class:`ConvFSENet`.
    """

    front_weight: Tensor
    front_bias: Tensor
    back_weight: Tensor
    back_bias: Tensor

    def __init__(
        self,
        config: ConvFSENetConfig,
        blocks: list[FoldedBlock],
        front: tuple[Tensor, Tensor],
        back: tuple[Tensor, Tensor],
        calibration: list[tuple[float, float]],
    ):
        super().__init__()
        self.config = config
        self.calibration = calibration
        self.blocks = cast("list[FoldedBlock]", nn.ModuleList(blocks))
        for name, tensor in zip(("front_weight", "front_bias", "back_weight", "back_bias"), (*front, *back)):
            self.register_buffer(name, tensor.detach().clone())
        self.eval()

    @classmethod
    def from_trained(cls, model: ConvFSENet) -> InferenceConvFSENet:
        """Fold a trained network; the trained one stays as it is."""
        return cls(
            model.config,
            [FoldedBlock(block) for block in model.blocks],
            (model.front.weight, model.front.bias),
            (model.back.weight, model.back.bias),
            list(model.calibration),
        )

    @property
    def macs_per_frame(self) -> int:
        """MACs per frame with every channel kept, gate networks included."""
        return macs_per_frame(self.config)

    def forward(
        self, features: Tensor, shift: float = 0.0, return_gates: bool = False
    ) -> Tensor | tuple[Tensor, list[BlockGates]]:
        """Mask (B, bins, T) for ``features`` (B, bins, T); the gates are boolean. Arguments as :class:`ConvFSENet`."""
        check_features("InferenceConvFSENet", features, self.config)
        x = pointwise(features, self.front_weight, self.front_bias, "relu")
        gates = []
        for block in self.blocks:
            x, used = block(x, shift)
            if return_gates:  # otherwise their memory is free for the next block
                gates.append(used)
        mask = pointwise(x, self.back_weight, self.back_bias, "sigmoid")
        return (mask, gates) if return_gates else mask

    def initial_state(self, batch: int = 1) -> StreamState:
        """State before the first frame of ``batch`` streams.

        Raises:
            RuntimeError: the network looks ahead.
        """
        if not self.config.streamable:
            raise RuntimeError(
                "initial_state: streaming needs a causal network with gates per frame or static "
                f"(got causal={self.config.causal}, gate_per={self.config.gate_per!r})"
            )
        histories, pools = [], []
        for block in self.blocks:
            hidden, taps = block.w_dw.shape
            histories.append(block.w_dw.new_zeros(batch, hidden, (taps - 1) * block.dilation))
            pools.append({} if block.gate is None else block.gate.initial_state(batch, self.front_weight))
        return StreamState(histories, pools)

    def step(
        self, frame: Tensor, state: StreamState, shift: float = 0.0
    ) -> tuple[Tensor, StreamState, list[BlockGates]]:
        """Advance by one frame.

        Args:
            frame: features (B, bins).
            state: from :meth:`initial_state` or the previous step; it is not changed.
            shift: as in :meth:`forward`.

        Returns:
            Mask (B, bins), the next state, and the boolean gates of every block, (B, channels) each or None.

        Raises:
            ValueError: the shape is wrong.
        """
        if frame.dim() != 2 or frame.shape[1] != self.config.bins:
            raise ValueError(f"step: frame must be (batch, {self.config.bins}) (got {tuple(frame.shape)})")
        x = F.relu(F.linear(frame, self.front_weight, self.front_bias))
        histories, pools, gates = [], [], []
        for block, history, pool in zip(self.blocks, state.histories, state.pools):
            x, history, pool, used = block.step(x, history, pool, shift)
            histories.append(history)
            pools.append(pool)
            gates.append(used)
        mask = torch.sigmoid(F.linear(x, self.back_weight, self.back_bias))
        return mask, StreamState(histories, pools), gates
