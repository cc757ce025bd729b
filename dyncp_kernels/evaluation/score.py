"""Scoring a model on pairs of clean and noisy files: quality, usage, MACs, speed, and how dynamic its gates are."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dyncp_kernels._atomic import replacing
from dyncp_kernels.audio.enhance import enhance
from dyncp_kernels.audio.stft import frame_count
from dyncp_kernels.audio.stream import StreamingEnhancer
from dyncp_kernels.clip_engine import for_clips
from dyncp_kernels.engine import PackedModel
from dyncp_kernels.evaluation.dynamism import Dynamism, DynamismMeter, block_masks
from dyncp_kernels.evaluation.metrics import MeanInterval, mean_interval, pesq_wideband, si_sdr, stoi
from dyncp_kernels.nn.block import BlockGates
from dyncp_kernels.nn.inference import InferenceConvFSENet
from dyncp_kernels.nn.macs import macs_from_gates
from dyncp_kernels.training.data import read_pair

__all__ = ["ScoreReport", "Utterance", "score"]


@dataclass(frozen=True)
class Utterance:
    """Scores of one file, its name relative to the folder of all noisy ones.

    PESQ is wideband (ITU-T P.862.2), SI-SDR in dB, usage a share of the gated channels.
    """

    name: str
    seconds: float
    noisy_pesq: float
    pesq: float
    noisy_stoi: float
    stoi: float
    noisy_si_sdr: float
    si_sdr: float
    usage: float
    macs_per_frame: float
    real_time_factor: float


@dataclass(frozen=True)
class ScoreReport:
    """Scores of all files.

    Attributes:
        utterances: one row a file.
        dynamism: per block, how the gates behave over all files; empty for a model without gates.
        overall: the same over all blocks; None for a model without gates.
        masks: per file and block, the recorded masks, bool (channels, frames).
    """

    utterances: list[Utterance]
    dynamism: list[Dynamism]
    overall: Dynamism | None
    masks: list[list[NDArray[np.bool_]]]

    def means(self) -> dict[str, MeanInterval]:
        """Mean and 95 % bootstrap interval of every column; ``pesq_gain`` and so on are paired differences."""
        columns = {
            field.name: np.array([getattr(u, field.name) for u in self.utterances])
            for field in fields(Utterance)
            if field.name != "name"
        }
        for metric in ("pesq", "stoi", "si_sdr"):
            columns[f"{metric}_gain"] = columns[metric] - columns[f"noisy_{metric}"]
        return {name: mean_interval(values) for name, values in columns.items()}

    def summary(self) -> dict[str, Any]:
        """Means, intervals and dynamism as plain values that JSON can hold."""
        result: dict[str, Any] = {"files": len(self.utterances)}
        for name, interval in self.means().items():
            result[name] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        if self.overall is not None:
            result["dynamism"] = self.overall.row()
        return result

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row a file, whole or not at all."""
        with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Utterance)])
            writer.writeheader()
            writer.writerows(asdict(utterance) for utterance in self.utterances)


def score(
    model: InferenceConvFSENet,
    pairs: Sequence[tuple[Path, Path]],
    budget: float | None = None,
    precision: str | None = None,
    on_file: Callable[[Utterance], None] | None = None,
) -> ScoreReport:
    """Enhance every noisy file and score it against its clean partner.

    Args:
        model: the folded network.
        pairs: (clean, noisy) files, see :func:`dyncp_kernels.training.data.find_pairs`; both are cut to the shorter.
        budget: share of channels to keep; None for the trained operating point.
        precision: score the streaming engine with weights of this precision, see ``engine.PackedModel``; None for the
            offline network.
        on_file: called after each file, for progress bars.

    Raises:
        ValueError: there are no pairs, or a file cannot be scored.
    """
    if not pairs:
        raise ValueError("score: at least one pair of files is needed (got none)")
    config = model.config
    root = os.path.commonpath([noisy.parent for _, noisy in pairs])
    packed = None if precision is None else PackedModel(model, precision)
    clips = for_clips(model)
    meter = DynamismMeter()
    utterances, masks = [], []
    for clean_path, noisy_path in pairs:
        clean, noisy = read_pair(clean_path, noisy_path, config.sample_rate)
        started = time.perf_counter()
        if packed is None:
            enhanced, gates = enhance(clips, noisy, budget=budget, return_gates=True)
        else:
            enhanced, gates = _stream(packed, noisy, budget)
        elapsed = time.perf_counter() - started
        recorded = block_masks(gates, frame_count(len(clean), config.n_fft, config.hop))
        if recorded:
            meter.add(recorded)
            masks.append(recorded)
        seconds = len(clean) / config.sample_rate
        try:
            metrics = _metrics("noisy_", clean, noisy, config.sample_rate)
            metrics |= _metrics("", clean, enhanced, config.sample_rate)
        except ValueError as error:
            raise ValueError(f"{noisy_path}: {error}") from None
        utterances.append(
            Utterance(
                name=noisy_path.relative_to(root).with_suffix("").as_posix(),
                seconds=seconds,
                **metrics,
                usage=float(np.mean([mask.mean() for mask in recorded])) if recorded else 1.0,
                macs_per_frame=macs_from_gates(config, gates),
                real_time_factor=elapsed / seconds,
            )
        )
        if on_file is not None:
            on_file(utterances[-1])
    if not masks:
        return ScoreReport(utterances, [], None, [])
    return ScoreReport(utterances, meter.blocks(), meter.overall(), masks)


def _metrics(
    prefix: str, clean: NDArray[np.float32], signal: NDArray[np.float32], sample_rate: int
) -> dict[str, float]:
    return {
        f"{prefix}pesq": pesq_wideband(clean, signal, sample_rate),
        f"{prefix}stoi": stoi(clean, signal, sample_rate),
        f"{prefix}si_sdr": si_sdr(clean, signal),
    }


def _stream(
    packed: PackedModel, noisy: NDArray[np.float32], budget: float | None
) -> tuple[NDArray[np.float32], list[BlockGates]]:
    """What ``enhance`` returns, from the streaming engine."""
    enhancer = StreamingEnhancer(packed, budget=budget)
    parts = [enhancer.push(noisy, return_gates=True), enhancer.flush(return_gates=True)]
    enhanced = np.concatenate([samples for samples, _ in parts])[enhancer.latency :]
    blocks = zip(*(gates for _, gates in parts if gates))
    gates = [BlockGates(*(None if s[0] is None else torch.cat(s, -1) for s in zip(*block))) for block in blocks]
    return enhanced, gates
