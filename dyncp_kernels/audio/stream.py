"""Streaming enhancement: push samples as they come, get enhanced samples a constant latency later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from dyncp_kernels.audio.enhance import Samples, budget_shift, checked_samples, model_device
from dyncp_kernels.audio.stft import StreamingAnalysis, StreamingSynthesis, apply_mask, features

if TYPE_CHECKING:
    from dyncp_kernels.nn.block import BlockGates

__all__ = ["StreamingEnhancer"]


class StreamingEnhancer:
    """Enhances one or several signals in step, hop by hop, with the same result as ``enhance``, delayed by ``latency``.

    The model is shared and only read; the state lives here. So many enhancers may use one model, each from its own
    thread; one enhancer must not be used from two threads at a time. One frame is too little work to share, so
    ``torch.set_num_threads(1)`` makes streaming faster on most machines.

    Args:
        model: a causal ``ConvFSENet`` in eval mode (it is folded here) or ``InferenceConvFSENet``. To share the folded
            weights between enhancers, fold once and pass the result.
        budget: share of channels to keep, as in ``enhance``; the attribute may be set between pushes.
        streams: number of signals S.

    Raises:
        ValueError: the model looks ahead, is in training mode or cannot follow the budget; ``streams`` is below 1.
    """

    _like: tuple[int, Any, bool]  # dimensions, dtype and whether numpy, of the last push
    _waiting: Tensor
    _received: int

    def __init__(self, model: nn.Module, *, budget: float | None = None, streams: int = 1) -> None:
        if streams < 1:
            raise ValueError(f"StreamingEnhancer: streams must be at least 1 (got {streams})")
        config: Any = model.config
        if not config.streamable:
            raise ValueError(
                "StreamingEnhancer: model must be causal with gates per frame "
                f"(got causal={config.causal}, gate_per={config.gate_per!r})"
            )
        if model.training:
            raise ValueError("StreamingEnhancer: model must be in eval mode (got training mode)")
        trained: Any = model
        self.model: Any = trained.fold() if hasattr(trained, "fold") else trained
        self.budget = budget
        self.streams = streams
        self._device = model_device(self.model)
        self._config = config
        self._analysis = StreamingAnalysis(streams, config.n_fft, config.hop)
        self._synthesis = StreamingSynthesis(streams, config.n_fft, config.hop)
        self.reset()

    @property
    def budget(self) -> float | None:
        """Share of channels to keep; None for the trained operating point."""
        return self._budget

    @budget.setter
    def budget(self, budget: float | None) -> None:
        self._shift = budget_shift(self.model, budget)
        self._budget = budget

    @property
    def latency(self) -> int:
        """Samples by which the output lags behind the input: n_fft - hop, of the framing alone."""
        return int(self._config.n_fft - self._config.hop)

    @property
    def frames(self) -> int:
        """Frames processed since the start or the last reset."""
        return self._frames

    @overload
    def push(self, samples: Samples, *, return_gates: Literal[False] = ...) -> Samples: ...
    @overload
    def push(self, samples: Samples, *, return_gates: Literal[True]) -> tuple[Samples, list[BlockGates]]: ...
    def push(self, samples: Samples, *, return_gates: bool = False) -> Samples | tuple[Samples, list[BlockGates]]:
        """Take any number of samples, return those that are finished: whole hops.

        Args:
            samples: (S, N), or (N,) when there is one stream; float32 or float64, numpy or torch, at the model's rate.
            return_gates: also return the gates of the frames that were processed.

        Returns:
            Same kind and dtype, (S, M) or (M,): M is the largest multiple of the hop that is complete. With
            ``return_gates`` also one ``BlockGates`` per block, each site bool (S, channels, frames) or None; no frames
            give an empty list.

        Raises:
            TypeError: another dtype or kind.
            ValueError: another shape, NaN or infinity. A refused push changes nothing.
        """
        batch, restore = checked_samples(samples, "StreamingEnhancer.push")
        if batch.shape[0] != self.streams:
            raise ValueError(
                f"StreamingEnhancer.push: samples must be ({self.streams}, N) (got {tuple(samples.shape)})"
            )
        self._like = (samples.ndim, samples.dtype, isinstance(samples, np.ndarray))
        self._received += batch.shape[-1]
        waiting = torch.cat((self._waiting, batch.cpu()), dim=-1)
        whole = waiting.shape[-1] // self._config.hop * self._config.hop
        self._waiting = waiting[:, whole:].clone()
        enhanced, gates = self._process(waiting[:, :whole])
        return (restore(enhanced), gates) if return_gates else restore(enhanced)

    def flush(self, *, return_gates: bool = False) -> Any:
        """End the signal: return what is left, so that all outputs together have N + latency samples; then reset.

        The kind, dtype and number of dimensions are those of the last push (without one, torch float32 (S, latency)).
        """
        hop = self._config.hop
        due = self._received + self.latency - self._frames * hop
        silence = torch.zeros(self.streams, -(-due // hop) * hop - self._waiting.shape[-1])
        rest, gates = self._process(torch.cat((self._waiting, silence), dim=-1))
        dimensions, dtype, is_numpy = self._like
        shaped = rest[:, :due] if dimensions == 2 else rest[0, :due]
        self.reset()
        samples = shaped.numpy().astype(dtype) if is_numpy else shaped.to(dtype)
        return (samples, gates) if return_gates else samples

    def reset(self) -> None:
        """Forget the signal so far, as if newly made."""
        self._analysis.reset()
        self._synthesis.reset()
        self._state = self.model.initial_state(self.streams)
        self._waiting = torch.zeros(self.streams, 0)
        self._received = 0
        self._frames = 0
        self._like = (2, torch.float32, False)

    def _process(self, samples: Tensor) -> tuple[Tensor, list[BlockGates]]:
        with torch.no_grad():
            spectrum = self._analysis.push(samples)
            mask, gates = self._masks(features(spectrum, self._config.compression))
            self._frames += spectrum.shape[-1]
            return self._synthesis.push(apply_mask(spectrum, mask)), gates

    def _masks(self, compressed: Tensor) -> tuple[Tensor, list[BlockGates]]:
        if not compressed.shape[-1]:
            return compressed, []
        masks, decided = [], []
        for frame in compressed.to(self._device).unbind(-1):
            mask, self._state, gates = self.model.step(frame, self._state, self._shift)
            masks.append(mask)
            decided.append(gates)
        return torch.stack(masks, dim=-1).cpu(), [_joined(frames) for frames in zip(*decided)]


def _joined(frames: Sequence[BlockGates]) -> BlockGates:
    """One block's gates of many frames, (S, channels) each, as (S, channels, frames)."""
    sites = (None if site[0] is None else torch.stack(site, dim=-1) for site in zip(*frames))
    return type(frames[0])(*sites)
