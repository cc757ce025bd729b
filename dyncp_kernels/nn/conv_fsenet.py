"""Conv-FSENet with dynamic channel pruning, in its trainable form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyncp_kernels.nn.block import BlockGates, GatedBlock, Pointwise
from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.gate import ChannelGate, StaticGate
from dyncp_kernels.nn.macs import macs_per_frame

if TYPE_CHECKING:
    from dyncp_kernels.nn.inference import InferenceConvFSENet

__all__ = ["ConvFSENet"]


def _build_gate(config: ConvFSENetConfig) -> ChannelGate | StaticGate | None:
    gates = config.channels * config.gates_output_channels + config.hidden * config.gates_hidden_channels
    if not gates:
        return None
    if config.gate_per == "static":
        return StaticGate(gates, config.surrogate, config.surrogate_slope)
    return ChannelGate(
        config.channels,
        gates,
        config.gate_hidden,
        config.gate_pooling,
        config.gate_window,
        config.gate_per,
        config.surrogate,
        config.surrogate_slope,
    )


class ConvFSENet(nn.Module):
    """Conv-FSENet: 1x1 front-end, dilated depthwise-separable blocks with channel gates, 1x1 back-end, sigmoid mask.

    Source: "Scalable Speech Enhancement with Dynamic Channel Pruning", arXiv 2412.17121.

    Args:
        config: geometry and gates; None and keyword arguments build a :class:`ConvFSENetConfig`.
        **overrides: fields of the config to change.

    Attributes:
        config: the geometry.
        calibration: pairs (usage, shift) in rising order, from :func:`dyncp_kernels.nn.calibrate`; empty until then.
    """

    def __init__(self, config: ConvFSENetConfig | None = None, **overrides: Any):
        super().__init__()
        values = {**(config or ConvFSENetConfig()).to_dict(), **overrides}
        self.config = config = ConvFSENetConfig.from_dict(values)
        self.calibration: list[tuple[float, float]] = []
        self.front = Pointwise(config.bins, config.channels)
        blocks = [
            GatedBlock(
                config.channels,
                config.hidden,
                config.kernel_size,
                dilation,
                config.causal,
                config.activation,
                config.site,
                _build_gate(config),
            )
            for _ in range(config.stacks)
            for dilation in config.dilations
        ]
        self.blocks = cast("list[GatedBlock]", nn.ModuleList(blocks))
        self.back = Pointwise(config.channels, config.bins)

    @property
    def macs_per_frame(self) -> int:
        """MACs per frame with every channel kept, gate networks included."""
        return macs_per_frame(self.config)

    def forward(
        self, features: Tensor, shift: float | Tensor = 0.0, return_gates: bool = False
    ) -> Tensor | tuple[Tensor, list[BlockGates]]:
        """Mask (B, bins, T) in (0, 1) for ``features`` (B, bins, T).

        Args:
            features: compressed magnitudes.
            shift: added to every gate score: above 0 keeps more channels than the trained operating point, below 0
                fewer; one for all items, or (B, 1, 1).
            return_gates: also return the gates of every block.

        Raises:
            ValueError: the shape is wrong.
        """
        check_features("ConvFSENet", features, self.config)
        x = F.relu(self.front(features))
        gates = []
        for block in self.blocks:
            x, used = block(x, shift)
            gates.append(used)
        mask = torch.sigmoid(self.back(x))
        return (mask, gates) if return_gates else mask

    def fold(self) -> InferenceConvFSENet:
        """The same network for inference: BatchNorm folded into the convolutions, run by ``gated_conv``."""
        from dyncp_kernels.nn.inference import InferenceConvFSENet

        return InferenceConvFSENet.from_trained(self)


def check_features(name: str, features: Tensor, config: ConvFSENetConfig) -> None:
    if features.dim() != 3 or features.shape[1] != config.bins:
        raise ValueError(f"{name}: features must be (batch, {config.bins}, frames) (got {tuple(features.shape)})")
