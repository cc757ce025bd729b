"""Multiply-accumulates per frame. Only multiplies of convolutions count; the gate networks are counted too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dyncp_kernels.nn.block import BlockGates
from dyncp_kernels.nn.config import ConvFSENetConfig

__all__ = ["block_macs", "gate_macs", "macs_from_gates", "macs_per_frame", "saved_share"]


def block_macs(config: ConvFSENetConfig, hidden_kept: float, out_kept: float) -> float:
    """MACs of one block at one frame with that many hidden and output channels kept.

    A kept hidden channel costs its row of W_in, its K taps and, in every kept output row, one multiply.
    """
    return hidden_kept * (config.channels + config.kernel_size + out_kept)


def gate_macs(config: ConvFSENetConfig) -> int:
    """MACs of one gate network for one decision."""
    if config.site == "none" or config.gate_per == "static":
        return 0
    gates = config.channels * config.gates_output_channels + config.hidden * config.gates_hidden_channels
    return config.gate_hidden * (config.channels + gates)


def macs_per_frame(config: ConvFSENetConfig, hidden_kept: int | None = None, out_kept: int | None = None) -> int:
    """MACs of the whole network per frame when each block keeps that many channels (default: all of them).

    Per-utterance gates are counted as one decision per frame, an upper bound: their true share is a clip's one
    decision divided by its frames.
    """
    hidden_kept = config.hidden if hidden_kept is None else hidden_kept
    out_kept = config.channels if out_kept is None else out_kept
    ends = 2 * config.bins * config.channels
    return int(ends + config.blocks * (block_macs(config, hidden_kept, out_kept) + gate_macs(config)))


def macs_from_gates(config: ConvFSENetConfig, gates: Sequence[BlockGates]) -> float:
    """Mean MACs per frame over batch and time, from the masks that were really used.

    Args:
        config: geometry.
        gates: one :class:`BlockGates` per block, boolean or 0/1, (B, channels, T or 1).
    """
    total = float(2 * config.bins * config.channels)
    for block in gates:
        hidden, out = _kept(block.hidden, config.hidden), _kept(block.out, config.channels)
        # The product of the two counts is taken frame by frame before averaging; a block that keeps no hidden channel
        # at a frame costs nothing there.
        total += float((hidden * (config.channels + config.kernel_size + out)).mean())
        total += gate_macs(config)
    return total


def saved_share(config: ConvFSENetConfig, macs: float) -> float:
    """Share of MACs that ``macs`` per frame saves against the same network without gates."""
    return 1.0 - macs / macs_per_frame(replace(config, site="none"))


def _kept(gate: Tensor | None, channels: int) -> Tensor:
    return torch.tensor(float(channels)) if gate is None else (gate != 0).double().sum(1)
