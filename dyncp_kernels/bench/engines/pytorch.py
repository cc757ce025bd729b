"""The static network in plain PyTorch: eager, through torch.compile, and compiled ahead of time (AOTInductor)."""

# ruff: noqa: D102 (the methods are described in Run)
from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree

from dyncp_kernels.bench.engines.interface import Run
from dyncp_kernels.bench.workload import Workload
from dyncp_kernels.nn.inference import InferenceConvFSENet

__all__ = ["Offline", "Stream", "ahead_of_time_stream", "compiled_offline", "compiled_stream"]

Array = NDArray[np.float32]
Taps = list[tuple[Tensor, ...]]


class _Block(NamedTuple):
    """Weights of a block, the depthwise ones tap by tap, so that no frame has to take them apart."""

    w_in: Tensor
    b_in: Tensor
    slope_in: Tensor | None
    w_dw: tuple[Tensor, ...]
    b_dw: Tensor
    slope_dw: Tensor | None
    w_out: Tensor
    b_out: Tensor


class _Weights(NamedTuple):
    front: tuple[Tensor, Tensor]
    blocks: list[_Block]
    back: tuple[Tensor, Tensor]


def _weights(network: InferenceConvFSENet) -> _Weights:
    blocks = []
    for block in network.blocks:
        b: Any = block
        taps = tuple(tap.contiguous() for tap in b.w_dw.unbind(1))
        blocks.append(_Block(b.w_in, b.b_in, b.slope_in, taps, b.b_dw, b.slope_dw, b.w_out, b.b_out))
    n: Any = network
    return _Weights((n.front_weight, n.front_bias), blocks, (n.back_weight, n.back_bias))


def _active(x: Tensor, slope: Tensor | None) -> Tensor:
    return F.relu(x) if slope is None else F.prelu(x, slope)


def _step(weights: _Weights, frame: Tensor, taps: Taps) -> tuple[Tensor, ...]:
    """Mask (S, bins), then each block's depthwise input (S, H), from features (S, bins) and earlier such inputs."""
    x = F.relu(F.linear(frame, *weights.front))
    inputs = []
    for b, older in zip(weights.blocks, taps):
        u = _active(F.linear(x, b.w_in, b.b_in), b.slope_in)
        total = b.b_dw
        for tap, values in zip(b.w_dw, (*older, u)):
            total = torch.addcmul(total, tap, values)
        x = x + F.linear(_active(total, b.slope_dw), b.w_out, b.b_out)
        inputs.append(u)
    return torch.sigmoid(F.linear(x, *weights.back)), *inputs


class _Step(nn.Module):
    """The step as a module whose weights compilers may take for constants."""

    def __init__(self, weights: _Weights):
        super().__init__()
        values, self._structure = _pytree.tree_flatten(weights)
        self._names = [f"weight_{i}" for i in range(len(values))]
        for name, value in zip(self._names, values):
            self.register_buffer(name, value)

    def forward(self, frame: Tensor, taps: Taps) -> tuple[Tensor, ...]:
        weights = _pytree.tree_unflatten([getattr(self, name) for name in self._names], self._structure)
        return _step(weights, frame, taps)


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

    def __init__(self, work: Workload, threads: int, step: Callable[[Tensor, Taps], Any] | None = None):
        torch.set_num_threads(threads)
        self._step = partial(_step, _weights(work.network)) if step is None else step
        self._frames = [frame.contiguous() for frame in work.features.unbind(-1)]
        config = work.config
        self._dilations = list(config.dilations) * config.stacks
        self._older = config.kernel_size - 1
        self._rows = (work.batch, config.hidden)
        self.reset()

    def reset(self) -> None:
        # Each row a tensor of its own: what is compiled may rely on that.
        self._rings = [[torch.zeros(self._rows) for _ in range(self._older * d + 1)] for d in self._dilations]
        self._frame = 0

    @torch.inference_mode()
    def __call__(self, frame: int) -> None:
        t = self._frame
        taps = [
            tuple(ring[(t - k * dilation) % len(ring)] for k in range(self._older, 0, -1))
            for ring, dilation in zip(self._rings, self._dilations)
        ]
        outputs = self._step(self._frames[frame], taps)
        self._mask, inputs = outputs[0], outputs[1:]
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
    return Stream(work, threads, _compiled(_Step(_weights(work.network))))


def ahead_of_time_stream(work: Workload, threads: int) -> Stream:
    """The same compiled ahead of time to a library, which checks nothing when it is called."""
    torch.set_num_threads(threads)
    config = work.config
    taps = [
        tuple(torch.zeros(work.batch, config.hidden) for _ in range(config.kernel_size - 1))
        for _ in range(config.blocks)
    ]
    program = torch.export.export(_Step(_weights(work.network)), (work.features[..., 0].contiguous(), taps))
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "step.pt2"))
        library = torch._inductor.aoti_load_package(path).loader

    def step(frame: Tensor, taps: Taps) -> list[Tensor]:
        return library.run([frame, *(row for older in taps for row in older)])

    return Stream(work, threads, step)


def compiled_offline(work: Workload, threads: int) -> Offline:
    """The same through torch.compile, as one graph for this one shape."""
    return Offline(work, threads, _compiled(_clips))
