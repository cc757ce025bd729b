"""Losses: compressed spectral error at the active speech level, and L_DCP for the gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dyncp_kernels.nn.block import BlockGates

__all__ = [
    "SpectralTarget",
    "active_level",
    "compressed_spectral_loss",
    "dcp_loss",
    "spectral_target",
    "usage",
]

_ACTIVE_RMS = 0.025


def active_level(samples: Tensor, frame: int = 512) -> Tensor:
    """Active speech level: mean RMS of the frames whose RMS exceeds 0.025 of full scale.

    Args:
        samples: (B, N), full scale 1.
        frame: frame length in samples.

    Returns:
        (B,); the overall RMS (at least 1e-4) for items without an active frame.
    """
    rms = samples.unfold(-1, frame, frame).square().mean(-1).sqrt()
    active = (rms > _ACTIVE_RMS).to(rms.dtype)
    count = active.sum(-1)
    mean = (rms * active).sum(-1) / count.clamp(min=1)
    return torch.where(count > 0, mean, samples.square().mean(-1).sqrt().clamp(min=1e-4))


class SpectralTarget(NamedTuple):
    """What the spectral loss compares a mask with; each (B, bins, T), magnitudes at the active level.

    Args:
        noisy: noisy magnitudes.
        clean: clean magnitudes.
        cosine: cosine of the phase difference of noisy and clean.
    """

    noisy: Tensor
    clean: Tensor
    cosine: Tensor


def spectral_target(noisy: Tensor, clean: Tensor, level: Tensor) -> SpectralTarget:
    """Prepare the spectral loss; both spectra are divided by ``level``, so loud and soft clips weigh alike.

    Args:
        noisy: (B, bins, T), complex spectrum.
        clean: (B, bins, T), complex spectrum.
        level: (B,) from :func:`active_level` of the clean signal.
    """
    product = noisy * clean.conj()
    scale = 1.0 / level[:, None, None]
    return SpectralTarget(noisy.abs() * scale, clean.abs() * scale, product.real / (product.abs() + 1e-12))


def compressed_spectral_loss(
    mask: Tensor, target: SpectralTarget, compression: float = 0.3, complex_share: float = 0.3
) -> Tensor:
    """Power-compressed spectral error: (1 - a) * magnitude part + a * complex part, mean over all bins.

    Args:
        mask: (B, bins, T), real.
        target: from :func:`spectral_target`.
        compression: exponent c.
        complex_share: a.
    """
    clean = (target.clean + 1e-9) ** compression
    estimate = (mask * target.noisy + 1e-9) ** compression
    # |s e^{ip} - t e^{iq}|^2 = (s - t)^2 + 2 s t (1 - cos(p - q)), and the mask leaves the phase difference alone.
    magnitude_error = (estimate - clean).square()
    complex_error = magnitude_error + 2.0 * estimate * clean * (1.0 - target.cosine)
    return ((1.0 - complex_share) * magnitude_error + complex_share * complex_error).mean()


def usage(gates: Sequence[BlockGates], parts: int = 1) -> Tensor:
    """Share of channels that each gated site keeps in each of ``parts`` equal parts of the batch; (sites, parts)."""
    sites = [site for block in gates for site in block if site is not None]
    return torch.stack([site.float().reshape(parts, -1).mean(-1) for site in sites])


def dcp_loss(gates: Sequence[BlockGates], targets: Tensor) -> Tensor:
    """L_DCP: mean over blocks (and sites) of (usage - target)^2.

    Args:
        gates: the gates of every block, floating point with the surrogate's gradient.
        targets: (parts,), share of channels to keep, Phi_trgt, in each of so many equal parts of the batch.
    """
    return (usage(gates, len(targets)) - targets).square().mean()
