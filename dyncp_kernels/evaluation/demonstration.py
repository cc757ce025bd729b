"""The demo: one clip through the static and the pruned network, heard, drawn, counted and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dyncp_kernels.audio.enhance import enhance
from dyncp_kernels.audio.files import write_audio
from dyncp_kernels.audio.stft import features, frame_count, stft
from dyncp_kernels.audio.stream import StreamingEnhancer
from dyncp_kernels.evaluation.dynamism import block_masks
from dyncp_kernels.evaluation.figure import channel_state_figure
from dyncp_kernels.evaluation.frame_time import FrameTime, frame_times
from dyncp_kernels.evaluation.metrics import pesq_wideband
from dyncp_kernels.nn.conv_fsenet import ConvFSENet
from dyncp_kernels.nn.inference import InferenceConvFSENet
from dyncp_kernels.nn.macs import macs_from_gates

__all__ = ["Demonstration", "ModelResult", "demonstrate"]

_TIMED_SECONDS = 10.0
_STREAM_TOLERANCE = 1e-4
_FOLD_TOLERANCE = 1e-4
_TIE_FRACTION = 1e-3


@dataclass(frozen=True)
class ModelResult:
    """One network on the clip.

    Attributes:
        macs_per_frame: mean over the clip, from the masks that were used, gate networks included.
        usage: share of the gated channels that were computed; 1.0 without gates.
        time: median time per frame.
        pesq: wideband PESQ; None without a clean reference.
    """

    macs_per_frame: float
    usage: float
    time: FrameTime
    pesq: float | None


@dataclass(frozen=True)
class Demonstration:
    """Results by model name, the PESQ of the noisy clip, and the files that were written."""

    models: dict[str, ModelResult]
    noisy_pesq: float | None
    seconds: float
    files: list[Path]


def demonstrate(
    models: dict[str, ConvFSENet],
    noisy: NDArray[np.float32],
    out: Path,
    *,
    clean: NDArray[np.float32] | None = None,
    timing_seconds: float = 4.0,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Demonstration:
    """Enhance a clip with each network; write audio and one figure per gated network; count MACs and measure time.

    Args:
        models: causal networks in eval mode by the name that files get.
        noisy: samples (N,) at the networks' rate.
        out: folder to write to; made where it is missing.
        clean: reference (N,) for PESQ.
        timing_seconds: about how long to measure, streaming and offline each.
        on_stage: called with a line on what happens next.

    Raises:
        ValueError: signals of different lengths or that cannot be scored.
        RuntimeError: a network gives wrong results (folded unlike trained, or streaming unlike offline); then nothing
            is timed, because the time of a wrong result means nothing.
    """
    if clean is not None and clean.shape != noisy.shape:
        raise ValueError(f"demonstrate: clean must be as long as noisy (got {clean.shape}, {noisy.shape})")
    out.mkdir(parents=True, exist_ok=True)
    config = next(iter(models.values())).config
    rate = config.sample_rate
    files: list[Path] = []

    def save(name: str, samples: NDArray[np.float32]) -> None:
        files.append(out / f"{name}.wav")
        write_audio(files[-1], samples, rate)

    def pesq(samples: NDArray[np.float32]) -> float | None:
        return None if clean is None else pesq_wideband(clean, samples, rate)

    save("noisy", noisy)
    if clean is not None:
        save("clean", clean)
    folded = {name: model.fold() for name, model in models.items()}
    macs, usage, score = {}, {}, {}
    for name, model in folded.items():
        on_stage(f"enhancing with {name}, and checking that folded = trained and streaming = offline")
        enhanced, gates = enhance(model, noisy, return_gates=True)
        _check_results(name, models[name], model, noisy, enhanced)
        save(name, enhanced)
        macs[name] = macs_from_gates(config=model.config, gates=gates)
        score[name] = pesq(enhanced)
        masks = block_masks(gates, frame_count(len(noisy), config.n_fft, config.hop))
        usage[name] = sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks) if masks else 1.0
        if masks:
            on_stage(f"drawing the channel states of {name}")
            files.append(out / f"{name}.png")
            title = f"Conv-FSENet, gates at the {model.config.site} site"
            channel_state_figure(files[-1], noisy, enhanced, masks, sample_rate=rate, hop=config.hop, title=title)
    on_stage("measuring time per frame")
    timed = torch.from_numpy(noisy[: int(_TIMED_SECONDS * rate)])
    compressed = features(stft(timed, config.n_fft, config.hop), config.compression)[None]
    times = frame_times(folded, compressed, budget_seconds=timing_seconds)
    results = {name: ModelResult(macs[name], float(usage[name]), times[name], score[name]) for name in models}
    return Demonstration(results, pesq(noisy), len(noisy) / rate, files)


def _check_results(
    name: str,
    trained: ConvFSENet,
    folded: InferenceConvFSENet,
    noisy: NDArray[np.float32],
    enhanced: NDArray[np.float32],
) -> None:
    # A gate score within rounding of 0 may fall to either side in another order of summation; such a flip is no error
    # but changes samples, so a small share of them may differ.
    enhancer = StreamingEnhancer(folded)
    streamed = np.concatenate([enhancer.push(noisy), enhancer.flush()])[enhancer.latency :]
    for what, other, tolerance in (
        ("streaming must equal offline", streamed, _STREAM_TOLERANCE),
        ("the folded network must equal the trained one", enhance(trained, noisy), _FOLD_TOLERANCE),
    ):
        difference = np.abs(other - enhanced)
        if np.mean(difference > tolerance) > _TIE_FRACTION:
            raise RuntimeError(f"{name}: {what} to {tolerance} of full scale (got {difference.max():.2e})")
