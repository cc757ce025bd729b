"""Scores of enhanced speech against its clean reference, and means with confidence intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dyncp_kernels._optional import require
from dyncp_kernels.audio.files import resample

_PESQ_RATE = 16000

__all__ = ["MeanInterval", "mean_interval", "pesq_wideband", "si_sdr", "stoi"]


def pesq_wideband(clean: ArrayLike, enhanced: ArrayLike, sample_rate: int = 16000) -> float:
    """Wideband PESQ (ITU-T P.862.2), mean opinion score 1.04 to 4.64.

    Args:
        clean: reference, shape (N,).
        enhanced: signal to score, shape (N,).
        sample_rate: in Hz, at least 16000; more is resampled to that, for which the measure is defined.

    Raises:
        ValueError: a lower rate, lengths that differ, a silent signal, NaN or infinity, or no utterance in it.
    """
    if sample_rate < _PESQ_RATE:
        raise ValueError(f"pesq_wideband: sample_rate must be at least {_PESQ_RATE} (got {sample_rate})")
    reference, signal = _checked_pair(clean, enhanced, "pesq_wideband")
    reference, signal = (resample(samples, sample_rate, _PESQ_RATE) for samples in (reference, signal))
    pesq = require("pesq", extra="eval")
    try:
        return float(pesq.pesq(_PESQ_RATE, reference, signal, "wb"))
    except pesq.PesqError as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"pesq_wideband: signals must hold at least one utterance (got: {reason})") from error


def stoi(clean: ArrayLike, enhanced: ArrayLike, sample_rate: int = 16000, *, extended: bool = False) -> float:
    """Short-time objective intelligibility, up to 1 (Taal et al. 2011), or its extension ESTOI (Jensen, Taal 2016).

    Raises:
        ValueError: lengths that differ, a silent signal, NaN or infinity, or less than about 0.4 s of speech.
    """
    reference, signal = _checked_pair(clean, enhanced, "stoi")
    pystoi = require("pystoi", extra="eval")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, signal, sample_rate, extended=extended))
        except (RuntimeWarning, ValueError, IndexError) as error:
            seconds = len(reference) / sample_rate
            raise ValueError(f"stoi: signals must hold 30 frames of speech, 0.4 s (got {seconds:.3f} s)") from error


def si_sdr(clean: ArrayLike, enhanced: ArrayLike) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), of the zero-mean signals.

    With s the reference, e the signal and t = (<e, s> / <s, s>) s: 10 log10(|t|^2 / |e - t|^2).

    Raises:
        ValueError: lengths that differ, a silent signal, NaN or infinity.
    """
    reference, signal = _checked_pair(clean, enhanced, "si_sdr")
    reference, signal = reference - reference.mean(), signal - signal.mean()
    energy = float(np.dot(reference, reference))
    if energy == 0.0:
        raise ValueError("si_sdr: clean must not be constant (got a constant signal)")
    target = np.dot(signal, reference) / energy * reference
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.sum(target**2) / np.sum((signal - target) ** 2)))


class MeanInterval(NamedTuple):
    """A mean, the ends of its confidence interval, and the number of values; infinite where a value is."""

    mean: float
    low: float
    high: float
    number: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(
    values: Sequence[float] | NDArray[Any], level: float = 0.95, *, resamples: int = 10_000, seed: int = 0
) -> MeanInterval:
    """Mean with its percentile bootstrap interval; for paired systems pass the differences.

    Args:
        values: one value per utterance; an infinite one makes the mean and the interval infinite.
        level: confidence level, between 0 and 1.
        resamples: bootstrap samples.
        seed: of the resampling, so that a report can be repeated.

    Raises:
        ValueError: no values, NaN, values of both infinities, or a level outside (0, 1).
    """
    array = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        total = float(array.sum())
    if array.ndim != 1 or not array.size or np.isnan(total):
        raise ValueError(f"mean_interval: values must be at least one number with a mean (got shape {array.shape})")
    if not 0.0 < level < 1.0:
        raise ValueError(f"mean_interval: level must lie between 0 and 1 (got {level})")
    if np.isinf(array).any():
        return MeanInterval(total, total, total, array.size)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 2_000_000 // array.size)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        means[start : start + count] = array[rng.integers(array.size, size=(count, array.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return MeanInterval(float(array.mean()), float(low), float(high), array.size)


def _checked_pair(clean: ArrayLike, enhanced: ArrayLike, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    pair = np.asarray(clean, dtype=np.float64), np.asarray(enhanced, dtype=np.float64)
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape:
        raise ValueError(
            f"{name}: clean and enhanced must be (N,) of one length (got {pair[0].shape}, {pair[1].shape})"
        )
    for label, signal in zip(("clean", "enhanced"), pair):
        if not np.isfinite(signal).all():
            raise ValueError(f"{name}: {label} must be finite (got NaN or infinity)")
        if not signal.any():
            raise ValueError(f"{name}: {label} must not be silent (got {len(signal)} zeros)")
    return pair
