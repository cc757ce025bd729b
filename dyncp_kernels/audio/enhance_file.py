"""Enhancement from file to file, at the file's own rate and channel count."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels.audio.enhance import enhance
from dyncp_kernels.audio.files import AudioFileError, audio_info, can_encode, read_audio, resample, write_audio
from dyncp_kernels.audio.stream import StreamingEnhancer
from dyncp_kernels.clip_engine import for_clips
from dyncp_kernels.nn.block import BlockGates
from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.inference import InferenceConvFSENet
from dyncp_kernels.nn.macs import macs_from_gates, saved_share

__all__ = ["EnhancedFile", "enhance_file"]

_PUSH_SECONDS = 0.5


@dataclass(frozen=True)
class EnhancedFile:
    """What enhancing one file took.

    Attributes:
        seconds: duration of the audio.
        elapsed: seconds spent on resampling and enhancing, without reading and writing.
        usage: share of the gated channels that were computed; None for a model without gates.
        macs_saved: share of the MACs of the same network without gates that was not computed, gate networks counted.
        notes: warnings from writing, such as a level that had to be lowered.
    """

    seconds: float
    elapsed: float
    usage: float | None
    macs_saved: float
    notes: tuple[str, ...]

    @property
    def real_time_factor(self) -> float:
        """Processing time by duration; below 1 is faster than real time."""
        return self.elapsed / self.seconds


def enhance_file(
    model: InferenceConvFSENet,
    source: Path,
    target: Path,
    *,
    budget: float | None = None,
    stream: bool = False,
    on_progress: Callable[[float], None] = lambda share: None,
) -> EnhancedFile:
    """Enhance ``source`` into ``target``; channels are enhanced apart, rate, channel count and length stay.

    Args:
        model: the folded network.
        source: audio file of any rate and channel count.
        target: file to write, whole or not at all; its suffix decides the format, the encoding is the source's where
            the format has it.
        budget: share of channels to keep; None for the trained operating point.
        stream: go through ``StreamingEnhancer`` in half-second pieces instead of all at once; same result.
        on_progress: called with the share of the file that is done, 0 to 1.

    Raises:
        AudioFileError: the source cannot be used or the target cannot be written.
        ValueError: a budget that the model cannot follow, or a model that cannot stream.
    """
    if source.exists() and target.exists() and source.samefile(target):
        raise AudioFileError(source, "output must not overwrite its input", target)
    info = audio_info(source)
    samples = read_audio(source, None, channels=True)
    started = time.perf_counter()
    tally = _Tally(model.config)
    at_model_rate = resample(samples, info.sample_rate, model.config.sample_rate)
    if stream:
        enhanced = _stream(model, at_model_rate, budget, tally, on_progress)
    else:
        enhanced, gates = enhance(for_clips(model), at_model_rate, budget=budget, return_gates=True)
        tally.add(gates)
    output = _fit(resample(enhanced, model.config.sample_rate, info.sample_rate), samples.shape[-1])
    elapsed = time.perf_counter() - started
    subtype = info.subtype if can_encode(target.suffix, info.subtype) else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        write_audio(target, output, info.sample_rate, subtype=subtype)
    on_progress(1.0)
    notes = tuple(str(warning.message) for warning in caught)
    return EnhancedFile(samples.shape[-1] / info.sample_rate, elapsed, tally.usage, tally.macs_saved, notes)


def _stream(
    model: InferenceConvFSENet,
    samples: NDArray[np.float32],
    budget: float | None,
    tally: _Tally,
    on_progress: Callable[[float], None],
) -> NDArray[np.float32]:
    enhancer = StreamingEnhancer(model, budget=budget, streams=len(samples))
    size = int(_PUSH_SECONDS * model.config.sample_rate)
    parts = []
    for start in range(0, samples.shape[-1], size):
        part, gates = enhancer.push(samples[:, start : start + size], return_gates=True)
        tally.add(gates)
        parts.append(part)
        on_progress(min(start + size, samples.shape[-1]) / samples.shape[-1])
    part, gates = enhancer.flush(return_gates=True)
    tally.add(gates)
    joined: NDArray[np.float32] = np.concatenate([*parts, part], axis=-1)[:, enhancer.latency :]
    return joined


def _fit(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Resampling there and back may round the length by a sample."""
    missing = max(0, length - samples.shape[-1])
    return np.pad(samples, ((0, 0), (0, missing)))[:, :length]


class _Tally:
    """Usage and MACs over pieces of a signal."""

    def __init__(self, config: ConvFSENetConfig) -> None:
        self._config = config
        self._kept = self._gates = 0
        self._macs = 0.0
        self._frames = 0

    def add(self, gates: Sequence[BlockGates]) -> None:
        sites = [site for block in gates for site in block if site is not None]
        if not sites:
            return
        frames = sites[0].shape[-1]
        self._kept += sum(int((site != 0).sum()) for site in sites)
        self._gates += sum(site.numel() for site in sites)
        self._macs += frames * macs_from_gates(self._config, gates)
        self._frames += frames

    @property
    def usage(self) -> float | None:
        return self._kept / self._gates if self._gates else None

    @property
    def macs_saved(self) -> float:
        return saved_share(self._config, self._macs / self._frames) if self._frames else 0.0
