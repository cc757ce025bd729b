"""Streaming enhancement: push samples as they come, get enhanced samples a constant latency later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from torch import Tensor, nn

from dyncp_kernels._extension import extension_loaded
from dyncp_kernels.audio.enhance import Samples, checked_samples, model_device, within_range
from dyncp_kernels.audio.stft import StreamingAnalysis, StreamingSynthesis, apply_mask, features
from dyncp_kernels.engine import PackedModel, StreamEngine
from dyncp_kernels.nn.block import BlockGates
from dyncp_kernels.nn.calibrate import shift_for_budget
from dyncp_kernels.nn.conv_fsenet import ConvFSENet
from dyncp_kernels.nn.inference import InferenceConvFSENet

__all__ = ["StreamingEnhancer"]


class StreamingEnhancer:
    """Enhances one or several signals in step, hop by hop, with the same result as ``enhance``, delayed by ``latency``.

    The model is shared and only read; the state lives here. So many enhancers may use one model, each from its own
    thread; one enhancer must not be used from two threads at a time. A float32 model on the CPU runs on the streaming
    engine, samples to samples in one call; without the extension, or in another dtype, it runs on
    ``InferenceConvFSENet.step``, where ``torch.set_num_threads(1)`` is faster on most machines: one frame is too little
    work to share.

    Args:
        model: a causal ``ConvFSENet`` in eval mode or ``InferenceConvFSENet`` (folded and packed here), or an
            ``engine.PackedModel``, which any number of enhancers share.
        budget: share of channels to keep, as in ``enhance``; the attribute may be set between pushes.
        streams: number of signals S.
        precision: of the weights in the streaming engine, see ``engine.PackedModel``; for a packed model its own.

    Raises:
        ValueError: the model looks ahead, is in training mode or cannot follow the budget; ``streams`` is below 1; a
            reduced precision where the streaming engine cannot run.
    """

    _like: tuple[int, Any, bool]  # dimensions, dtype and whether numpy, of the last push
    _waiting: np.ndarray[Any, Any]  # samples of an unfinished hop, (S, fewer than hop)
    _received: int

    def __init__(
        self,
        model: nn.Module | PackedModel,
        *,
        budget: float | None = None,
        streams: int = 1,
        precision: str = "float32",
    ) -> None:
        if streams < 1:
            raise ValueError(f"StreamingEnhancer: streams must be at least 1 (got {streams})")
        config: Any = model.config
        if not config.streamable:
            raise ValueError(
                "StreamingEnhancer: model must be causal with gates per frame "
                f"(got causal={config.causal}, gate_per={config.gate_per!r})"
            )
        if isinstance(model, nn.Module) and model.training:
            raise ValueError("StreamingEnhancer: model must be in eval mode (got training mode)")
        self.streams = streams
        self._config = config
        self._calibration: Any = model.calibration
        self._hops: _EngineHops | _ModelHops
        if isinstance(model, PackedModel):
            self._hops = _EngineHops(model, streams)
        elif _engine_runs(model):
            self._hops = _EngineHops(PackedModel(cast("InferenceConvFSENet", model), precision), streams)
        elif precision != "float32":
            raise ValueError(f"StreamingEnhancer: precision must be 'float32' without the engine (got {precision!r})")
        else:
            self._hops = _ModelHops(model, streams)
        self._engine = self._hops if isinstance(self._hops, _EngineHops) else None
        self.budget = budget
        self.reset()

    @property
    def budget(self) -> float | None:
        """Share of channels to keep; None for the trained operating point."""
        return self._budget

    @budget.setter
    def budget(self, budget: float | None) -> None:
        self._shift = shift_for_budget(self._calibration, budget)
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
            ValueError: another shape, NaN, infinity or absurdly large samples. A refused push changes nothing.
        """
        if self._engine is not None and not return_gates:
            pushed = self._push_plain(self._engine, samples)
            if pushed is not None:
                return cast("Samples", pushed)
        batch, restore = checked_samples(samples, "StreamingEnhancer.push")
        if batch.shape[0] != self.streams:
            raise ValueError(
                f"StreamingEnhancer.push: samples must be ({self.streams}, N) (got {tuple(samples.shape)})"
            )
        self._like = (samples.ndim, samples.dtype, isinstance(samples, np.ndarray))
        self._received += batch.shape[-1]
        waiting = torch.cat((torch.from_numpy(self._waiting), batch.cpu()), dim=-1)
        whole = waiting.shape[-1] - waiting.shape[-1] % self._config.hop
        self._waiting = waiting[:, whole:].numpy().copy()
        enhanced, gates = self._process(waiting[:, :whole], return_gates)
        return (restore(enhanced), gates) if return_gates else restore(enhanced)

    def _push_plain(self, engine: _EngineHops, samples: Any) -> Any:
        """The one stream's samples (N,), or whole hops of all streams (S, N), straight to the engine.

        None, with nothing done, where they need more care.
        """
        is_numpy = isinstance(samples, np.ndarray)
        hop, waiting = self._config.hop, self._waiting.shape[-1]
        if type(samples) not in (np.ndarray, Tensor) or samples.ndim != min(self.streams, 2):
            return None
        count = samples.shape[-1]
        whole = (waiting + count) // hop * hop
        if whole == waiting + count and not waiting:
            enhanced = engine.push_plain(samples, self._shift)
        elif self.streams > 1:
            return None
        else:
            if samples.dtype not in (np.float32, torch.float32) or not (is_numpy or samples.is_cpu):
                return None
            values = samples if is_numpy else samples.detach().numpy()
            if not within_range(values):
                return None
            joined = np.concatenate((self._waiting[0], values))
            enhanced = engine.push_plain(joined[:whole], self._shift)
            if enhanced is not None:
                self._waiting = joined[None, whole:].copy()
                enhanced = enhanced if is_numpy else torch.from_numpy(enhanced)
        if enhanced is not None:
            self._like = (samples.ndim, samples.dtype, is_numpy)
            self._received += count
            self._frames += whole // hop
        return enhanced

    def flush(self, *, return_gates: bool = False) -> Any:
        """End the signal: return what is left, so that all outputs together have N + latency samples; then reset.

        The kind, dtype and number of dimensions are those of the last push (without one, torch float32 (S, latency)).
        """
        hop = self._config.hop
        due = self._received + self.latency - self._frames * hop
        silence = torch.zeros(self.streams, -(-due // hop) * hop - self._waiting.shape[-1])
        rest, gates = self._process(torch.cat((torch.from_numpy(self._waiting), silence), dim=-1), return_gates)
        dimensions, dtype, is_numpy = self._like
        shaped = rest[:, :due] if dimensions == 2 else rest[0, :due]
        self.reset()
        samples = shaped.numpy().astype(dtype) if is_numpy else shaped.to(dtype)
        return (samples, gates) if return_gates else samples

    def reset(self) -> None:
        """Forget the signal so far, as if newly made."""
        self._hops.reset()
        self._waiting = np.zeros((self.streams, 0), np.float32)
        self._received = 0
        self._frames = 0
        self._like = (2, torch.float32, False)

    def _process(self, samples: Tensor, return_gates: bool) -> tuple[Tensor, list[BlockGates]]:
        if not samples.shape[-1]:
            return samples, []
        self._frames += samples.shape[-1] // self._config.hop
        return self._hops.push(samples, self._shift, return_gates)


def _engine_runs(model: nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    floats = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors if t.is_floating_point())
    n_fft = cast("Any", model.config).n_fft
    return (
        extension_loaded()
        and isinstance(model, (ConvFSENet, InferenceConvFSENet))
        and floats
        and n_fft & (n_fft - 1) == 0
    )


class _EngineHops:
    """Whole hops through the streaming engine."""

    def __init__(self, packed: PackedModel, streams: int) -> None:
        self._engine = StreamEngine(packed, streams=streams)

    def reset(self) -> None:
        self._engine.reset()

    def push_plain(self, samples: Any, shift: float) -> Any:
        """Enhance hops as they came; None, with nothing done, where they must be prepared."""
        self._engine.shift = shift
        return self._engine.push_finite_hops(samples)

    def push(self, samples: Tensor, shift: float, return_gates: bool) -> tuple[Tensor, list[BlockGates]]:
        """Enhance (S, n * hop) samples; gates (S, channels, n), or none of them."""
        self._engine.shift = shift
        if not return_gates:
            return self._engine.push_hop(samples.contiguous()), []
        enhanced, gates = self._engine.push_hop_with_gates(samples.contiguous())
        frames_last = [[None if site is None else site.transpose(1, 2) for site in block] for block in gates]
        return enhanced, [BlockGates(*block) for block in frames_last]


class _ModelHops:
    """Whole hops through the model's own step, all streams in one batch."""

    def __init__(self, model: nn.Module, streams: int) -> None:
        trained: Any = model
        self._model: Any = trained.fold() if hasattr(trained, "fold") else trained
        self._streams = streams
        self._device = model_device(self._model)
        config = self._model.config
        self._compression = config.compression
        self._analysis = StreamingAnalysis(streams, config.n_fft, config.hop)
        self._synthesis = StreamingSynthesis(streams, config.n_fft, config.hop)
        self.reset()

    def reset(self) -> None:
        self._analysis.reset()
        self._synthesis.reset()
        self._state = self._model.initial_state(self._streams)

    @torch.no_grad()
    def push(self, samples: Tensor, shift: float, return_gates: bool) -> tuple[Tensor, list[BlockGates]]:
        """Enhance (S, n * hop) samples; gates (S, channels, n), or none of them."""
        spectrum = self._analysis.push(samples)
        dtype = next(iter(self._model.buffers())).dtype
        masks, decided = [], []
        for frame in features(spectrum, self._compression).to(self._device, dtype).unbind(-1):
            mask, self._state, gates = self._model.step(frame, self._state, shift)
            masks.append(mask)
            decided.append(gates)
        mask = torch.stack(masks, dim=-1).to("cpu", samples.dtype)
        gates = [_joined(frames) for frames in zip(*decided)] if return_gates else []
        return self._synthesis.push(apply_mask(spectrum, mask)), gates


def _joined(frames: Sequence[BlockGates]) -> BlockGates:
    """One block's gates of many frames, (S, channels) each, as (S, channels, frames)."""
    return BlockGates(*(None if site[0] is None else torch.stack(site, dim=-1) for site in zip(*frames)))
