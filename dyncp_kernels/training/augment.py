"""Random variation of a batch of (clean, noise): level, equalisation, missing bands."""

from __future__ import annotations

import torch
from torch import Tensor

from dyncp_kernels.training.config import DataConfig

__all__ = ["augment"]

_POINTS = 8


def augment(clean: Tensor, noise: Tensor, config: DataConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Vary a batch; what changes the channel (level, missing band) changes speech and noise alike.

    Args:
        clean: (B, N).
        noise: (B, N).
        config: ranges.
        generator: source of randomness.

    Returns:
        The varied (clean, noise), same shapes; their sum stays below full scale.
    """
    batch = clean.shape[0]
    if config.equalise_db > 0 or config.band_mask > 0:
        spectra = torch.fft.rfft(torch.stack([clean, noise]))
        bins = spectra.shape[-1]
        curve = _smooth_curves(2 * batch, bins, config.equalise_db, generator).view(2, batch, bins)
        width = 0.05 + 0.15 * torch.rand(batch, 1, generator=generator)
        start = torch.rand(batch, 1, generator=generator) * (1 - width)
        position = torch.linspace(0, 1, bins)
        masked = torch.rand(batch, 1, generator=generator) < config.band_mask
        keep = ~(masked & (position >= start) & (position < start + width))
        clean, noise = torch.fft.irfft(spectra * (curve * keep), n=clean.shape[-1])
    low, high = config.level_db
    level = 10 ** ((low + (high - low) * torch.rand(batch, 1, generator=generator)) / 20)
    gain = level / clean.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-4)
    peak = (clean + noise).abs().amax(-1, keepdim=True).clamp(min=1e-6)
    gain = torch.minimum(gain, 0.99 / peak)
    return clean * gain, noise * gain


def _smooth_curves(count: int, bins: int, largest_db: float, generator: torch.Generator) -> Tensor:
    points = (2 * torch.rand(count, 1, _POINTS, generator=generator) - 1) * largest_db
    curve = torch.nn.functional.interpolate(points, size=bins, mode="linear", align_corners=True)
    return 10 ** (curve[:, 0] / 20)
