"""What an engine is given to do, and what must come out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dyncp_kernels.audio.files import read_audio
from dyncp_kernels.audio.stft import apply_mask, istft, stft
from dyncp_kernels.audio.stft import features as compress
from dyncp_kernels.bench.masks import Biases, Masks, block_gates
from dyncp_kernels.demo_clip import NOISY
from dyncp_kernels.engine import StreamEngine
from dyncp_kernels.nn.block import BlockGates
from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.conv_fsenet import ConvFSENet
from dyncp_kernels.nn.files import load
from dyncp_kernels.nn.inference import InferenceConvFSENet
from dyncp_kernels.nn.macs import macs_from_gates

__all__ = ["HopWorkload", "Workload", "hop_workload", "reference_mask", "shipped_workload", "synthetic_workload"]


@dataclass(frozen=True)
class Workload:
    """A folded network, its input, and the gates it must take.

    Attributes:
        network: the folded network; its gate networks are run and timed, the gates come from ``gates``.
        features: float32 (batch, bins, frames).
        gates: per block bool (batch, channels, frames) or None at each site.
        density: nominal share of channels kept.
        source: of the gates: ``none``, ``random`` or ``recorded``.
    """

    network: InferenceConvFSENet
    features: Tensor
    gates: list[BlockGates]
    density: float
    source: str

    @property
    def config(self) -> ConvFSENetConfig:
        """The geometry."""
        return self.network.config

    @property
    def batch(self) -> int:
        """Clips."""
        return self.features.shape[0]

    @property
    def frames(self) -> int:
        """Frames of each clip."""
        return self.features.shape[2]

    @cached_property
    def expected(self) -> Tensor:
        """Float64 reference of the mask, (batch, bins, frames)."""
        return reference_mask(self.network, self.features, self.gates)

    @cached_property
    def macs_per_frame(self) -> float:
        """Mean MACs per frame with these gates, gate networks included."""
        return macs_from_gates(self.config, self.gates)


def synthetic_workload(
    config: ConvFSENetConfig,
    batch: int,
    frames: int,
    *,
    masks: Masks | None = None,
    biases: Biases | None = None,
    density: float = 1.0,
    source: str = "none",
) -> Workload:
    """Seeded random weights and features; times do not depend on their values.

    Args:
        config: geometry.
        batch: clips.
        frames: frames of each.
        masks: (blocks, channels, frames) for a gated network, None for one without gates.
        biases: (blocks, channels) last biases of its gate networks, instead of random ones.
        density: nominal, for the row.
        source: likewise.
    """
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(batch, config.bins, frames, generator=generator)
    gates = [BlockGates(None, None)] * config.blocks if masks is None else block_gates(config, masks, batch, frames)
    network = _network(config)
    if biases is not None:
        network = copy.deepcopy(network)
        for block, values in zip(network.blocks, torch.from_numpy(biases)):
            gate: Any = block.gate
            gate.expand.bias.copy_(values)
    return Workload(network, features, gates, density, source)


def shipped_workload(name: str, streams: int = 1, frames: int | None = None) -> Workload:
    """A shipped network on the demo clip, with the gates that the streaming engine decides there.

    Args:
        name: of the network.
        streams: as many clips, which start at different places of the demo clip and go on at its start.
        frames: of each, at most those of the demo clip; None for all of these.
    """
    network = load(name).eval().fold().requires_grad_(False)
    config = network.config
    samples = torch.from_numpy(read_audio(NOISY, config.sample_rate))
    spectrum = stft(samples[None], config.n_fft, config.hop)
    clip = compress(spectrum, config.compression)
    length = clip.shape[-1]
    features = torch.cat([clip.roll(-i * length // streams, -1)[..., :frames] for i in range(streams)])
    decided = StreamEngine(network, streams=streams).step_with_gates(features.transpose(1, 2).contiguous())[1]
    gates = [BlockGates(*(None if site is None else site.transpose(1, 2) for site in block)) for block in decided]
    kept = torch.cat([site.float().flatten() for block in gates for site in block if site is not None])
    return Workload(network, features, gates, float(kept.mean()), "recorded")


@lru_cache(maxsize=16)
def _network(config: ConvFSENetConfig) -> InferenceConvFSENet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ConvFSENet(config).eval().fold().requires_grad_(False)


@torch.no_grad()
def reference_mask(network: InferenceConvFSENet, features: Tensor, gates: list[BlockGates]) -> Tensor:
    """The network as dense float64 products times the given gates: (batch, bins, frames)."""

    def wide(tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        return tensor.double()

    def activate(x: Tensor, slope: Tensor | None) -> Tensor:
        return F.relu(x) if slope is None else torch.where(x > 0, x, wide(slope) * x)

    x = F.relu(torch.matmul(wide(network.front_weight), features.double()) + wide(network.front_bias)[:, None])
    for block, (hidden, out) in zip(network.blocks, gates):
        u = activate(torch.matmul(wide(block.w_in), x) + wide(block.b_in)[:, None], block.slope_in)
        u = u if hidden is None else u * hidden
        taps = wide(block.w_dw)[:, None]
        reach = (taps.shape[-1] - 1) * int(block.dilation)
        padded = F.pad(u, (reach, 0) if block.causal else (reach // 2, reach // 2))
        z = F.conv1d(padded, taps, wide(block.b_dw), dilation=block.dilation, groups=len(taps))
        z = activate(z, block.slope_dw)
        z = z if hidden is None else z * hidden
        y = torch.matmul(wide(block.w_out), z) + wide(block.b_out)[:, None]
        if hidden is not None:
            y = y * hidden.any(1, keepdim=True)
        x = x + (y if out is None else y * out)
    return torch.sigmoid(torch.matmul(wide(network.back_weight), x) + wide(network.back_bias)[:, None])


@dataclass(frozen=True)
class HopWorkload(Workload):
    """Samples in, samples out; ``features`` are those of the samples.

    Attributes:
        samples: float32 (frames * hop,), the first hop silent.
        hops: the expected output, one hop a frame, (1, hop, frames).
    """

    samples: Tensor
    hops: Tensor

    @property
    def expected(self) -> Tensor:
        """Float64 reference of the enhanced samples, n_fft - hop samples late, (1, hop, frames)."""
        return self.hops


def hop_workload(work: Workload) -> HopWorkload:
    """Seeded noise to enhance with the network and gates of ``work``, whose gates must be given for its frames."""
    config, frames = work.config, work.frames
    generator = torch.Generator().manual_seed(2)
    samples = 0.1 * torch.randn(frames * config.hop, generator=generator)
    # Nothing before the signal: what the offline transform cuts off at its start is silent too.
    samples[: config.hop] = 0
    spectrum = stft(samples.double()[None], config.n_fft, config.hop)[..., :frames]
    features = compress(spectrum, config.compression)
    enhanced = torch.zeros_like(samples, dtype=torch.float64)
    masked = apply_mask(spectrum, reference_mask(work.network, features, work.gates))
    masked = F.pad(masked, (0, config.n_fft // config.hop - 1))
    late = config.n_fft - config.hop
    enhanced[late:] = istft(masked, len(samples), config.n_fft, config.hop)[0, : len(samples) - late]
    hops = enhanced.unfold(0, config.hop, config.hop).T[None]
    return HopWorkload(work.network, features.float(), work.gates, work.density, work.source, samples, hops)
