"""Short-time Fourier transform with a square-root Hann window, offline and hop by hop on the same framing.

With R = n_fft / hop, frame i holds samples [(i + 1) * hop - n_fft, (i + 1) * hop), zeros before the first sample and
after the last, so a signal of N samples has ceil(N / hop) + R - 1 frames and every sample lies in R of them. The
window w = sqrt(Hann, periodic) is applied before the transform and after the inverse; the squares of its R shifts add
up to R / 2, so overlap-add returns the signal exactly.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F


@functools.lru_cache(maxsize=16)
def _window(n_fft: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor would break a later backward pass
        return torch.hann_window(n_fft, periodic=True, dtype=torch.float64).sqrt().to(device, dtype)


def window(n_fft: int = 512, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Return the square root of the periodic Hann window, shape (n_fft,): the analysis and the synthesis window."""
    return _window(n_fft, dtype, torch.device(device)).clone()


def frame_count(samples: int, n_fft: int = 512, hop: int = 256) -> int:
    """Return the number of frames of a signal of ``samples`` samples: ceil(samples / hop) + n_fft / hop - 1."""
    return -(-samples // hop) + _overlap(n_fft, hop) - 1


def stft(samples: Tensor, n_fft: int = 512, hop: int = 256) -> Tensor:
    """Transform real samples (..., N), float32 or float64, to complex spectra (..., n_fft // 2 + 1, frames).

    Raises:
        ValueError: ``n_fft`` is no multiple of ``hop`` of at least twice its size.
        TypeError: samples of another dtype.
    """
    _check_real(samples, "stft")
    length = samples.shape[-1]
    total = (frame_count(length, n_fft, hop) - 1) * hop + n_fft
    before = n_fft - hop
    return _analyse(F.pad(samples, (before, total - before - length)), n_fft, hop)


def istft(spectrum: Tensor, length: int, n_fft: int = 512, hop: int = 256) -> Tensor:
    """Transform spectra (..., n_fft // 2 + 1, frames) back to real samples (..., length): ``stft``'s inverse.

    Raises:
        ValueError: ``length`` needs a number of frames other than the spectrum's.
    """
    if spectrum.shape[-1] != frame_count(length, n_fft, hop):
        raise ValueError(
            f"istft: length {length} must have {frame_count(length, n_fft, hop)} frames (got {spectrum.shape[-1]})"
        )
    before = n_fft - hop
    return _overlap_add(spectrum, n_fft, hop)[..., before : before + length]


def features(spectrum: Tensor, compression: float = 0.3) -> Tensor:
    """Compressed magnitudes that the network reads: (|X| + 1e-9) ** compression, same shape, real."""
    return (spectrum.abs() + 1e-9) ** compression


def apply_mask(spectrum: Tensor, mask: Tensor) -> Tensor:
    """Scale each complex bin by its real mask of the same shape; the phase stays."""
    if spectrum.shape != mask.shape:
        raise ValueError(
            f"apply_mask: mask must have the spectrum's shape {tuple(spectrum.shape)} (got {tuple(mask.shape)})"
        )
    return spectrum * mask


class StreamingAnalysis:
    """``stft`` fed with whole hops: frame i of the same signal comes out when its last sample has gone in."""

    def __init__(self, streams: int = 1, n_fft: int = 512, hop: int = 256) -> None:
        _overlap(n_fft, hop)
        self.n_fft, self.hop = n_fft, hop
        self._history = torch.zeros(streams, n_fft - hop)

    def push(self, samples: Tensor) -> Tensor:
        """Take (streams, k * hop) samples; return (streams, n_fft // 2 + 1, k) spectra."""
        if samples.shape[0] != self._history.shape[0] or samples.shape[-1] % self.hop:
            raise ValueError(
                f"StreamingAnalysis.push: samples must be ({self._history.shape[0]}, a multiple of {self.hop}) "
                f"(got {tuple(samples.shape)})"
            )
        joined = torch.cat((self._history, samples), dim=-1)
        self._history = joined[:, samples.shape[-1] :].clone()
        if not samples.shape[-1]:
            return torch.zeros(samples.shape[0], self.n_fft // 2 + 1, 0, dtype=torch.complex64)
        return _analyse(joined, self.n_fft, self.hop)

    def reset(self) -> None:
        """Forget the signal so far."""
        self._history.zero_()


class StreamingSynthesis:
    """``istft`` fed with frames: each frame completes one hop of samples, n_fft - hop samples behind the analysis."""

    def __init__(self, streams: int = 1, n_fft: int = 512, hop: int = 256) -> None:
        _overlap(n_fft, hop)
        self.n_fft, self.hop = n_fft, hop
        self._tail = torch.zeros(streams, n_fft - hop)

    def push(self, spectrum: Tensor) -> Tensor:
        """Take (streams, n_fft // 2 + 1, k) spectra; return the (streams, k * hop) samples that they complete."""
        count = spectrum.shape[-1]
        if not count:
            return self._tail.new_zeros(self._tail.shape[0], 0)
        samples = _overlap_add(spectrum, self.n_fft, self.hop)
        samples[:, : self._tail.shape[-1]] += self._tail
        self._tail = samples[:, count * self.hop :].clone()
        return samples[:, : count * self.hop]

    def reset(self) -> None:
        """Forget the signal so far."""
        self._tail.zero_()


def _overlap(n_fft: int, hop: int) -> int:
    if hop < 1 or n_fft % hop or n_fft < 2 * hop:
        raise ValueError(f"stft: n_fft must be a multiple of hop of at least 2 * hop (got n_fft={n_fft}, hop={hop})")
    return n_fft // hop


def _check_real(samples: Tensor, name: str) -> None:
    if samples.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: samples must be float32 or float64 (got {samples.dtype})")


def _analyse(samples: Tensor, n_fft: int, hop: int) -> Tensor:
    """Frames that lie wholly inside ``samples``, windowed and transformed: (..., n_fft // 2 + 1, frames)."""
    frames = samples.unfold(-1, n_fft, hop) * _window(n_fft, samples.dtype, samples.device)
    return torch.fft.rfft(frames).transpose(-1, -2)


def _overlap_add(spectrum: Tensor, n_fft: int, hop: int) -> Tensor:
    """Windowed inverse transforms added up: (..., (frames - 1) * hop + n_fft)."""
    overlap = _overlap(n_fft, hop)
    frames = torch.fft.irfft(spectrum.transpose(-1, -2), n=n_fft)
    scaled = frames * (_window(n_fft, frames.dtype, frames.device) * (2.0 / overlap))
    parts = scaled.unflatten(-1, (overlap, hop))
    shifted = [F.pad(parts[..., shift, :], (0, 0, shift, overlap - 1 - shift)) for shift in range(overlap)]
    return sum(shifted[1:], shifted[0]).flatten(-2)
