"""Training batches: pairs of clean speech and noise, from pairs on disk or mixed on the fly.

Every batch is a function of (seed, step) alone, so a resumed run sees exactly the batches that it would have seen.
Audio is held in memory as 16-bit samples: VoiceBank+DEMAND takes about 2 GB, an hour of speech 115 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyncp_kernels.audio.files import find_audio, read_audio
from dyncp_kernels.training.config import DataConfig

__all__ = ["BatchSource", "MixtureSource", "PairSource", "find_pairs", "open_training_data", "prefetch", "read_pair"]

_Pairs = list[tuple[Path, Path]]


def _audio_files(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: a data folder must exist (got no such folder)")
    files = [path for path, _ in find_audio([folder])]
    if not files:
        raise ValueError(f"{folder}: a data folder must hold audio files (got none)")
    return files


def find_pairs(clean: str | Path, noisy: str | Path) -> _Pairs:
    """Pairs (clean, noisy) with equal relative names.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder is empty, names differ, or two files of a folder differ in their suffixes only.
    """
    noisy_files, clean_files = _by_name(noisy), _by_name(clean)
    alone = sorted(str(name) for name in noisy_files.keys() ^ clean_files.keys())
    if alone:
        raise ValueError(f"find_pairs: clean and noisy files must have equal names (got no partner for {alone[:3]})")
    return [(clean_files[name], noisy_files[name]) for name in sorted(noisy_files)]


def _by_name(folder: str | Path) -> dict[Path, Path]:
    found: dict[Path, Path] = {}
    for path in _audio_files(folder):
        other = found.setdefault(path.relative_to(folder).with_suffix(""), path)
        if other != path:
            raise ValueError(f"find_pairs: names must differ in more than their suffix (got {other} and {path})")
    return found


def read_pair(clean: Path, noisy: Path, sample_rate: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Samples of a pair at ``sample_rate`` Hz, cut to the shorter of the two."""
    pair = read_audio(clean, sample_rate), read_audio(noisy, sample_rate)
    length = min(map(len, pair))
    return pair[0][:length], pair[1][:length]


def _load(path: Path, sample_rate: int) -> np.ndarray:
    return np.round(np.clip(read_audio(path, sample_rate), -1, 1) * 32767).astype(np.int16)


class BatchSource(Protocol):
    """Where batches come from."""

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Clean speech and noise, (size, samples) each, float32; the noisy signal is their sum."""


class PairSource:
    """Crops of clean/noisy pairs; the noise is the difference of the two.

    Args:
        pairs: from :func:`find_pairs`.
        samples: crop length.
        sample_rate: in Hz.
        remix: swap the noises inside a batch.
    """

    def __init__(self, pairs: _Pairs, samples: int, sample_rate: int, remix: bool = True):
        self._samples, self._remix = samples, remix
        self._pairs = [(_load(c, sample_rate), _load(n, sample_rate)) for c, n in pairs]

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
        """See :class:`BatchSource`."""
        rng = np.random.default_rng((seed, step))
        clean = np.zeros((size, self._samples), np.float32)
        noise = np.zeros_like(clean)
        for row in range(size):
            c, n = self._pairs[rng.integers(len(self._pairs))]
            length = min(len(c), len(n))
            start = int(rng.integers(max(length - self._samples, 0) + 1))
            crop = slice(start, min(start + self._samples, length))
            at = int(rng.integers(max(self._samples - length, 0) + 1))
            part = c[crop].astype(np.float32) / 32768.0
            clean[row, at : at + len(part)] = part
            noise[row, at : at + len(part)] = n[crop].astype(np.float32) / 32768.0 - part
        if self._remix:
            noise = noise[rng.permutation(size)]
        return torch.from_numpy(clean), torch.from_numpy(noise)


class MixtureSource:
    """Speech and noise files mixed at a random SNR; short speech is joined end to end, short noise is looped.

    Args:
        speech: clean speech files.
        noise: noise files.
        samples: crop length.
        sample_rate: in Hz.
        snr_db: range of the ratio of active speech level to noise level, in dB.
    """

    def __init__(
        self,
        speech: Sequence[Path],
        noise: Sequence[Path],
        samples: int,
        sample_rate: int,
        snr_db: tuple[float, float],
    ):
        self._samples, self._snr_db = samples, snr_db
        self._speech = [_load(p, sample_rate) for p in speech]
        self._noise = [_load(p, sample_rate) for p in noise]
        # Files are drawn in proportion to the root of their length: long recordings count for more, but do not drown
        # the short ones.
        self._speech_odds = _root_length_odds(self._speech)
        self._noise_odds = _root_length_odds(self._noise)

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
        """See :class:`BatchSource`."""
        rng = np.random.default_rng((seed, step))
        clean = np.stack([self._speech_crop(rng) for _ in range(size)])
        noise = np.stack([self._noise_crop(rng) for _ in range(size)])
        for row in range(size):
            snr = rng.uniform(*self._snr_db)
            noise[row] *= _level(clean[row]) / max(_rms(noise[row]), 1e-5) * 10 ** (-snr / 20)
        return torch.from_numpy(clean), torch.from_numpy(noise)

    def _speech_crop(self, rng: np.random.Generator) -> np.ndarray:
        out = np.zeros(self._samples, np.float32)
        at = 0
        while at < self._samples:
            clip = self._speech[rng.choice(len(self._speech), p=self._speech_odds)]
            start = int(rng.integers(max(len(clip) - self._samples, 0) + 1))
            part = clip[start : start + self._samples - at]
            out[at : at + len(part)] = part.astype(np.float32) / 32768.0
            # A pause of up to half a second between joined utterances.
            at += len(part) + int(rng.integers(8000))
        return out

    def _noise_crop(self, rng: np.random.Generator) -> np.ndarray:
        clip = self._noise[rng.choice(len(self._noise), p=self._noise_odds)]
        start = int(rng.integers(len(clip)))
        index = (start + np.arange(self._samples)) % len(clip)
        return clip[index].astype(np.float32) / 32768.0


def _root_length_odds(clips: Sequence[np.ndarray]) -> np.ndarray:
    weights = np.sqrt([float(len(clip)) for clip in clips])
    return weights / weights.sum()


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def _level(samples: np.ndarray) -> float:
    """RMS of the 32 ms frames within 30 dB of the loudest."""
    frames = samples[: len(samples) // 512 * 512].reshape(-1, 512)
    rms = np.sqrt(np.mean(np.square(frames), axis=1))
    return float(rms[rms >= rms.max() * 10**-1.5].mean())


def open_training_data(config: DataConfig, sample_rate: int) -> tuple[BatchSource, _Pairs]:
    """The batch source of a config and its validation pairs (clean, noisy).

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder holds no audio, or pairs do not match.
    """
    samples = round(config.seconds * sample_rate)
    valid: _Pairs | None = None
    if config.valid_clean is not None and config.valid_noisy is not None:
        valid = find_pairs(config.valid_clean, config.valid_noisy)
    source: BatchSource
    if config.speech is not None and config.noise is not None:
        source = MixtureSource(
            _audio_files(config.speech), _audio_files(config.noise), samples, sample_rate, config.snr_db
        )
    else:
        if config.voicebank is not None:
            root = Path(config.voicebank)
            pairs = find_pairs(root / "clean_trainset_28spk_wav", root / "noisy_trainset_28spk_wav")
        else:
            pairs = find_pairs(str(config.clean), str(config.noisy))
        if valid is None:
            # Names sort by speaker, so a contiguous tenth holds out speakers rather than sentences.
            held_out = max(len(pairs) // 10, 1)
            if held_out >= len(pairs):
                raise ValueError(f"DataConfig: at least 2 pairs are needed to hold one out (got {len(pairs)})")
            pairs, valid = pairs[:-held_out], pairs[-held_out:]
        source = PairSource(pairs, samples, sample_rate, config.remix)
    assert valid is not None
    if 0 < config.valid_files < len(valid):
        valid = [valid[i * len(valid) // config.valid_files] for i in range(config.valid_files)]
    return source, valid


def prefetch(
    source: BatchSource, seed: int, steps: range, size: int, depth: int = 4
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches of ``steps`` in order, prepared by a background thread."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(source.batch, seed, step, size) for step in steps[:depth]]
        for i, step in enumerate(steps):
            clean, noise = pending.pop(0).result()
            if i + depth < len(steps):
                pending.append(pool.submit(source.batch, seed, steps[i + depth], size))
            yield step, clean, noise
