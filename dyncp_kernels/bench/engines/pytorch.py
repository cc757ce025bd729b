"""The static network in plain PyTorch, eager and through torch.compile."""

# ruff: noqa: D102 (the methods are described in Run)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dyncp_kernels.bench.engines.interface import Run
from dyncp_kernels.bench.workload import Workload
from dyncp_kernels.nn.inference import InferenceConvFSENet

__all__ = ["Offline", "Stream", "compiled_offline", "compiled_stream"]

Array = NDArray[np.float32]


def _active(x: Tensor, slope: Tensor | None) -> Tensor:
    return F.relu(x) if slope is None else F.prelu(x, slope)


def _step(network: InferenceConvFSENet, frame: Tensor, taps: list[tuple[Tensor, ...]]) -> tuple[Tensor, list[Tensor]]:
    """Mask (S, bins) and each block's depthwise input (S, H), from features (S, bins) and earlier depthwise inputs."""
    x = F.relu(F.linear(frame, network.front_weight, network.front_bias))
    inputs = []
    for block, older in zip(network.blocks, taps):
        b: Any = block
        u = _active(F.linear(x, b.w_in, b.b_in), b.slope_in)
        total = b.b_dw
        for k, tap in enumerate((*older, u)):
            total = torch.addcmul(total, b.w_dw[:, k], tap)
        x = x + F.linear(_active(total, b.slope_dw), b.w_out, b.b_out)
        inputs.append(u)
    return torch.sigmoid(F.linear(x, network.back_weight, network.back_bias)), inputs


def _clips(network: InferenceConvFSENet, features: Tensor) -> Tensor:
    x = F.relu(F.conv1d(features, network.front_weight[..., None], network.front_bias))
    for block in network.blocks:
        b: Any = block
        u = _active(F.conv1d(x, b.w_in[..., None], b.b_in), b.slope_in)
        reach = (b.w_dw.shape[1] - 1) * b.dilation
        padded = F.pad(u, (reach, 0) if b.causal else (reach // 2, reach // 2))
        z = F.conv1d(padded, b.w_dw[:, None], b.b_dw, dilation=b.dilation, groups=len(b.w_dw))
        x = x + F.conv1d(_active(z, b.slope_dw), b.w_out[..., None], b.b_out)
    return torch.sigmoid(F.conv1d(x, network.back_weight[..., None], network.back_bias))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


class Stream(Run):
    """One frame of each stream a call; earlier depthwise inputs are kept as they came out."""

    def __init__(self, work: Workload, threads: int, step: Callable[..., Any] = _step):
        torch.set_num_threads(threads)
        self._network = work.network
        self._step = step
        self._frames = [frame.contiguous() for frame in work.features.unbind(-1)]
        config = work.config
        self._dilations = list(config.dilations) * config.stacks
        self._older = config.kernel_size - 1
        self._zero = torch.zeros(work.batch, config.hidden)
        self.reset()

    def reset(self) -> None:
        self._rings = [[self._zero] * (self._older * dilation + 1) for dilation in self._dilations]
        self._frame = 0

    @torch.inference_mode()
    def __call__(self, frame: int) -> None:
        t = self._frame
        taps = [
            tuple(ring[(t - k * dilation) % len(ring)] for k in range(self._older, 0, -1))
            for ring, dilation in zip(self._rings, self._dilations)
        ]
        self._mask, inputs = self._step(self._network, self._frames[frame], taps)
        for ring, u in zip(self._rings, inputs):
            ring[t % len(ring)] = u
        self._frame = t + 1

    def mask(self) -> Array:
        return self._mask.numpy().copy()


class Offline(Run):
    """Whole clips a call."""

    def __init__(self, work: Workload, threads: int, clips: Callable[..., Any] = _clips):
        torch.set_num_threads(threads)
        self._network, self._features, self._clips = work.network, work.features, clips

    @torch.inference_mode()
    def __call__(self, frame: int) -> None:
        self._mask = self._clips(self._network, self._features)

    def mask(self) -> Array:
        return self._mask.numpy().copy()


def compiled_stream(work: Workload, threads: int) -> Stream:
    """The same through torch.compile, as one graph for this one shape."""
    return Stream(work, threads, _compiled(_step))


def compiled_offline(work: Workload, threads: int) -> Offline:
    """The same through torch.compile, as one graph for this one shape."""
    return Offline(work, threads, _compiled(_clips))
