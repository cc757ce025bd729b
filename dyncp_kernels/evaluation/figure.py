"""The picture of dynamic channel pruning: spectrograms above, the channel states of every block below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels._optional import require

__all__ = ["channel_state_figure"]

_INK = "#1b1f24"
_FAINT = "#6b7480"
_CURVE = "#e8590c"
_RANGE_DB = 70.0
_N_FFT = 512
_HOP = 128


def channel_state_figure(
    path: str | Path,
    noisy: NDArray[np.floating],
    enhanced: NDArray[np.floating],
    masks: Sequence[NDArray[np.bool_]],
    *,
    sample_rate: int = 16000,
    hop: int = 256,
    title: str = "",
    labels: Sequence[str] | None = None,
) -> None:
    """Draw the spectrograms of a signal before and after, and which channels each block kept over time.

    In the manner of the figure of "Scalable Speech Enhancement with Dynamic Channel Pruning" (arXiv 2412.17121): kept
    channels white, omitted ones black, one panel per block with its average usage and, as a curve, the share of
    channels kept at each frame. In each panel the channels that are kept most often lie at the bottom, so that
    always-on and always-off channels show as a solid white and a solid black band.

    Args:
        path: image file to write; the suffix chooses the format.
        noisy: samples (N,), full scale 1.0.
        enhanced: samples (N,).
        masks: per block, bool (channels, frames), frame i centred on sample i * hop.
        sample_rate: in Hz.
        hop: samples per frame of the masks.
        title: heading; empty for none.
        labels: names of the blocks; default B0, B1, ...

    Raises:
        ValueError: signals that are not (N,) of one length, or a mask that is not 2-D.
    """
    noisy, enhanced = np.asarray(noisy), np.asarray(enhanced)
    if noisy.ndim != 1 or noisy.shape != enhanced.shape or not noisy.size:
        raise ValueError(
            f"channel_state_figure: noisy and enhanced must be (N,) of one length (got {noisy.shape}, {enhanced.shape})"
        )
    for mask in masks:
        if np.ndim(mask) != 2:
            raise ValueError(f"channel_state_figure: masks must be (channels, frames) (got {np.shape(mask)})")
    require("matplotlib", extra="cli")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seconds = len(noisy) / sample_rate
    rows = 2 + len(masks)
    spectrogram_height, block_height = 1.75, 0.8
    heights = [spectrogram_height] * 2 + [block_height] * len(masks)
    height = sum(heights) + 0.1 * rows + 1.6
    width = 11.0
    # pyplot keeps global state and picks a window system; a bare figure does neither.
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows, 2, height_ratios=heights, width_ratios=[1, 0.014], hspace=0.14, wspace=0.02,
        left=0.085, right=0.915, bottom=0.78 / height, top=1 - 0.62 / height,
    )  # fmt: skip

    levels = [_spectrogram(signal) for signal in (noisy, enhanced)]
    top = max(float(level.max()) for level in levels)
    axes: list[Any] = []
    for row, (level, name) in enumerate(zip(levels, ("noisy", "enhanced"))):
        axis = figure.add_subplot(grid[row, 0])
        image = axis.imshow(
            level, origin="lower", aspect="auto", cmap="magma", vmin=top - _RANGE_DB, vmax=top,
            extent=(0.0, seconds, 0.0, sample_rate / 2000), interpolation="bilinear",
        )  # fmt: skip
        axis.set_ylabel("frequency (kHz)", fontsize=9, color=_INK)
        axis.set_yticks(np.arange(0, sample_rate / 2000 + 0.1, 2))
        axis.text(0.008, 0.94, name, transform=axis.transAxes, va="top", color="white", fontsize=11, fontweight="bold")
        axes.append(axis)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[0:2, 1]))
    bar.set_label("level (dB)", fontsize=9, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_FAINT, length=2)

    names = labels or [f"B{index}" for index in range(len(masks))]
    for row, (mask, name) in enumerate(zip(masks, names), start=2):
        axis = figure.add_subplot(grid[row, 0])
        _draw_block(axis, np.asarray(mask, dtype=bool), name, hop / sample_rate)
        axes.append(axis)

    for axis in axes:
        axis.set_xlim(0.0, seconds)
        axis.tick_params(labelsize=8, colors=_FAINT, length=3, labelbottom=axis is axes[-1])
        for spine in axis.spines.values():
            spine.set_color(_FAINT)
            spine.set_linewidth(0.6)
    axes[-1].set_xlabel("time (s)", fontsize=9, color=_INK)
    if masks:
        usage = float(np.mean([np.mean(mask) for mask in masks]))
        figure.text(
            0.915, 0.14 / height,
            "white: kept, black: omitted, channels sorted by how often they are kept; "
            "curve: share kept at each frame (bottom 0 %, top 100 %); right: average, and lowest to highest frame",
            ha="right", va="bottom", fontsize=8, color=_FAINT,
        )  # fmt: skip
        kept = f"{_percent(usage)} of the channels kept"
        title = f"{title}: {kept}" if title else kept
    figure.text(0.085, 1 - 0.22 / height, title, ha="left", va="top", fontsize=13, fontweight="bold", color=_INK)
    figure.savefig(path, dpi=160)


def _draw_block(axis: Any, mask: NDArray[np.bool_], name: str, frame_seconds: float) -> None:
    channels, frames = mask.shape
    axis.set_facecolor("black")
    often = np.argsort(-mask.mean(axis=1), kind="stable")
    axis.imshow(
        mask[often].astype(np.float32), origin="lower", aspect="auto", cmap="gray", vmin=0, vmax=1,
        interpolation="antialiased",
        extent=(-0.5 * frame_seconds, (frames - 0.5) * frame_seconds, 0, channels),
    )  # fmt: skip
    axis.set_ylim(0, channels)
    axis.set_yticks([0, channels])
    instantaneous = mask.mean(axis=0)
    time = np.arange(frames) * frame_seconds
    # a dark edge keeps the curve readable on white channels
    axis.plot(time, instantaneous * channels, color="black", linewidth=2.6, alpha=0.55)
    axis.plot(time, instantaneous * channels, color=_CURVE, linewidth=1.3)
    axis.text(
        -0.058, 0.5, name, transform=axis.transAxes, ha="right", va="center", fontsize=11, fontweight="bold", color=_INK
    )
    axis.text(
        1.008, 0.5, _percent(mask.mean()), transform=axis.transAxes, ha="left", va="center", fontsize=11,
        fontweight="bold", color=_CURVE,
    )  # fmt: skip
    span = f"{100 * instantaneous.min():.0f} to {100 * instantaneous.max():.0f} %"
    axis.text(1.008, 0.10, span, transform=axis.transAxes, ha="left", va="center", fontsize=7, color=_FAINT)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _spectrogram(signal: NDArray[np.floating]) -> NDArray[np.float64]:
    """Level in dB, (bins, frames), frames centred."""
    padded = np.pad(signal.astype(np.float64), _N_FFT // 2)
    count = 1 + max(0, (len(padded) - _N_FFT) // _HOP)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP][:count]
    window = np.hanning(_N_FFT)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2 / (window.sum() / 2) ** 2
    return 10 * np.log10(power.T + 1e-12)
