"""The clip engine: the whole network on whole clips in one call, the offline twin of the streaming engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dyncp_kernels import _extension
from dyncp_kernels.nn import BlockGates, ChannelGate, ConvFSENet, InferenceConvFSENet, StaticGate
from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.ops.pooling import POOLINGS

__all__ = ["ClipEngine", "for_clips"]

_BLOCK_WEIGHTS = ("w_in", "b_in", "w_dw", "b_dw", "w_out", "b_out", "slope_in", "slope_dw")
_NONE = -1
# Frames of a word of decisions.
_WORD = 64


class ClipEngine:
    """The folded network for clips on the CPU in float32: the numbers of ``InferenceConvFSENet.forward``, bit by bit.

    One call of one op instead of one for each layer and gate. The weights are copied: later changes of the model do not
    show. Takes the place of the model in :func:`dyncp_kernels.audio.enhance`.

    Args:
        model: a network in either form, causal or not, its gates per frame, per utterance, static or none.

    Attributes:
        config: geometry of the network.
        calibration: as in :class:`dyncp_kernels.nn.ConvFSENet`.
        training: always False.

    Raises:
        RuntimeError: the native extension is missing.
    """

    training = False

    def __init__(self, model: ConvFSENet | InferenceConvFSENet):
        if not _extension.extension_loaded():
            raise RuntimeError("ClipEngine: the native extension must be built (got none)")
        folded = model.fold() if isinstance(model, ConvFSENet) else model
        self.config: ConvFSENetConfig = folded.config
        self.calibration = list(folded.calibration)
        self._weights, self._plan = _flattened(folded)

    def __call__(
        self, features: Tensor, shift: float = 0.0, return_gates: bool = False
    ) -> Tensor | tuple[Tensor, list[BlockGates]]:
        """Mask (B, bins, T) for ``features`` (B, bins, T); arguments and results as ``InferenceConvFSENet.forward``.

        Raises:
            RuntimeError: wrong shape, dtype or device.
        """
        mask, words = _OP(features, self._weights, self._plan, shift)
        return (mask, self._unpacked(words, features.shape[-1])) if return_gates else mask

    def run_with_gates(self, features: Tensor, gates: Tensor) -> Tensor:
        """As calling, but with ``gates`` in place of what the gate networks decide, which they do all the same.

        For ablations and measurements.

        Args:
            features: (B, bins, T).
            gates: of all blocks, as :meth:`packed` makes them.

        Raises:
            RuntimeError: wrong shape, dtype or device.
        """
        return _OP(features, self._weights, self._plan, 0.0, gates)[0]

    @staticmethod
    def packed(gates: list[BlockGates]) -> Tensor:
        """Gates of all blocks as bits, int64 (blocks, B, W, G): bit t % 64 of word t // 64 is that of frame t.

        Args:
            gates: per block, with T frames each, or one where gates decide once for a clip; the output gates of a block
                come first.
        """
        bits = torch.stack(
            [torch.cat([site for site in (block.out, block.hidden) if site is not None], 1) for block in gates]
        )
        bits = functional.pad(bits.to(torch.int64), (0, -bits.shape[-1] % _WORD))
        words = (bits.unflatten(-1, (-1, _WORD)) << torch.arange(_WORD)).sum(-1)
        return words.transpose(2, 3).contiguous()

    def _unpacked(self, words: Tensor, frames: int) -> list[BlockGates]:
        config = self.config
        bits = (words.transpose(2, 3).unsqueeze(-1) >> torch.arange(_WORD) & 1).flatten(-2).bool()
        if config.gate_per == "frame" and config.gate_pooling == "global":
            bits = bits[..., :1].expand(-1, -1, -1, frames)
        else:
            bits = bits[..., : frames if config.gate_per == "frame" else 1]
        outputs = config.channels * config.gates_output_channels
        return [
            BlockGates(
                hidden=block[:, outputs:] if config.gates_hidden_channels else None,
                out=block[:, :outputs] if outputs else None,
            )
            for block in bits.unbind()
        ]


def for_clips(model: InferenceConvFSENet) -> ClipEngine | InferenceConvFSENet:
    """What computes whole clips fastest, with the same numbers: a clip engine of the model, or the model itself.

    The model itself where the native extension is missing, and on other devices than the CPU.
    """
    runs_here = _extension.extension_loaded() and model.front_weight.device.type == "cpu"
    return ClipEngine(model) if runs_here and model.front_weight.dtype == torch.float32 else model


def _flattened(model: InferenceConvFSENet) -> tuple[Tensor, Tensor]:
    """All weights in one tensor, and the plan that says where they are, as csrc/torch/clip_network.cpp reads it."""
    config = model.config
    pieces: list[Tensor] = []
    end = 0

    def place(tensor: Tensor | None) -> int:
        nonlocal end
        if tensor is None:
            return _NONE
        pieces.append(tensor.detach().to("cpu", torch.float32).flatten())
        start, end = end, end + tensor.numel()
        return start

    gate: Any = model.blocks[0].gate if len(model.blocks) else None
    has_network = isinstance(gate, ChannelGate)
    pooling = "global" if has_network and gate.per == "utterance" else gate.pool.kind if has_network else POOLINGS[0]
    plan = [config.bins, config.channels, config.hidden, config.kernel_size, int(config.causal)]
    plan += [int(config.gates_output_channels), int(config.gates_hidden_channels)]
    plan += [gate.reduce.out_features if has_network else 0, POOLINGS.index(pooling)]
    plan += [gate.pool.window if has_network else 1, len(model.blocks)]
    plan += [place(part) for part in (model.front_weight, model.front_bias, model.back_weight, model.back_bias)]
    for block in model.blocks:
        plan.append(block.dilation)
        plan += [place(getattr(block, name)) for name in _BLOCK_WEIGHTS]
        if isinstance(block.gate, ChannelGate):
            linear = (block.gate.reduce, block.gate.expand)
            plan += [place(part) for layer in linear for part in (layer.weight, layer.bias)]
        elif isinstance(block.gate, StaticGate):
            plan += [_NONE, _NONE, _NONE, place(block.gate.score)]
        else:
            plan += [_NONE] * 4
    return torch.cat(pieces), torch.tensor(plan, dtype=torch.int64)


def _register_fake() -> None:
    def clip_masks(
        features: Tensor, weights: Tensor, plan: Tensor, shift: float = 0.0, instead: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        # How many gates there are stands in the plan, which a fake tensor does not hold.
        sizes = [torch.library.get_ctx().new_dynamic_size() for _ in range(3)]
        decisions = features.new_empty(sizes[0], features.shape[0], sizes[1], sizes[2], dtype=torch.int64)
        return torch.empty_like(features, memory_format=torch.contiguous_format), decisions

    torch.library.register_fake("dyncp::clip_masks", clip_masks)


if _extension.extension_loaded():
    _register_fake()
    # Found once: looking it up costs a third of a short call.
    _OP = torch.ops.dyncp.clip_masks.default
