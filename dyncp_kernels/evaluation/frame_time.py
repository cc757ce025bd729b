"""Time per frame of several networks on the same audio, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from dyncp_kernels._extension import extension_loaded
from dyncp_kernels.engine import StreamEngine
from dyncp_kernels.nn.inference import InferenceConvFSENet

__all__ = ["FrameTime", "frame_times"]

_CHUNK = 50  # frames in a row per network: long enough to settle in the cache, short enough to share every disturbance
_WARM_UP_CHUNKS = 2
_WARM_UP_PASSES = 2
_MIN_PASSES = 5


@dataclass(frozen=True)
class FrameTime:
    """Median microseconds per frame of one network, from features to mask, gates and index lists included.

    Attributes:
        streaming: one frame a call of the streaming engine, one thread.
        offline: all frames in one call, ``threads`` threads.
        threads: PyTorch's thread count for the offline figure.
        frames: frames of the clip.
    """

    streaming: float
    offline: float
    threads: int
    frames: int


def frame_times(
    models: Mapping[str, InferenceConvFSENet], features: Tensor, *, budget_seconds: float = 4.0
) -> dict[str, FrameTime]:
    """Measure every network on real features; the networks take turns, so that a disturbance hits them alike.

    Args:
        models: folded causal networks.
        features: compressed magnitudes (1, bins, T).
        budget_seconds: about how long to measure, for streaming and for offline each.

    Raises:
        ValueError: no frame.
    """
    if features.dim() != 3 or features.shape[0] != 1 or not features.shape[-1]:
        raise ValueError(f"frame_times: features must be (1, bins, T) with T at least 1 (got {tuple(features.shape)})")
    threads, frames = torch.get_num_threads(), features.shape[-1]
    with torch.no_grad():
        torch.set_num_threads(1)
        try:
            streaming = _streaming(models, features, budget_seconds)
        finally:
            torch.set_num_threads(threads)
        offline = _offline(models, features, budget_seconds)
    return {
        name: FrameTime(1e6 * median(streaming[name]), 1e6 * median(offline[name]) / frames, threads, frames)
        for name in models
    }


def _streaming(
    models: Mapping[str, InferenceConvFSENet], features: Tensor, budget_seconds: float
) -> dict[str, list[float]]:
    """Seconds per frame of each chunk."""
    frames = list(features[0].T.contiguous())
    chunks = [frames[start : start + _CHUNK] for start in range(0, len(frames), _CHUNK)]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    streams = {name: StreamEngine(model) if extension_loaded() else _Stepper(model) for name, model in models.items()}
    end = time.perf_counter() + budget_seconds
    rounds = 0
    while True:
        for stream in streams.values():
            stream.reset()
        for chunk in chunks:
            for name, stream in streams.items():
                start = time.perf_counter()
                for frame in chunk:
                    stream.step(frame)
                elapsed = time.perf_counter() - start
                if rounds >= _WARM_UP_CHUNKS:
                    seconds[name].append(elapsed / len(chunk))
            rounds += 1
            if time.perf_counter() > end and rounds >= _WARM_UP_CHUNKS + _MIN_PASSES:
                return seconds


class _Stepper:
    """A stream through the model's own step, for installations without the streaming engine."""

    def __init__(self, model: InferenceConvFSENet) -> None:
        self._model = model
        self.reset()

    def reset(self) -> None:
        self._state = self._model.initial_state()

    def step(self, frame: Tensor) -> Tensor:
        mask, self._state, _ = self._model.step(frame[None], self._state)
        return mask[0]


def _offline(
    models: Mapping[str, InferenceConvFSENet], features: Tensor, budget_seconds: float
) -> dict[str, list[float]]:
    """Seconds of each pass over the clip."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    end = time.perf_counter() + budget_seconds
    passes = 0
    while time.perf_counter() < end or passes < _WARM_UP_PASSES + _MIN_PASSES:
        for name, model in models.items():
            start = time.perf_counter()
            model(features)
            elapsed = time.perf_counter() - start
            if passes >= _WARM_UP_PASSES:
                seconds[name].append(elapsed)
        passes += 1
    return seconds
