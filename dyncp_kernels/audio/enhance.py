"""Offline enhancement: a whole signal through STFT, network and inverse STFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from dyncp_kernels.audio import stft as transform
from dyncp_kernels.audio.files import LARGEST_SAMPLE
from dyncp_kernels.nn.calibrate import shift_for_budget

if TYPE_CHECKING:
    from dyncp_kernels.clip_engine import ClipEngine
    from dyncp_kernels.nn.block import BlockGates

Samples = TypeVar("Samples", Tensor, "np.ndarray[Any, Any]")

__all__ = ["checked_samples", "enhance", "model_device", "within_range"]

_FLOATS = frozenset((torch.float32, torch.float64, np.dtype(np.float32), np.dtype(np.float64)))


@overload
def enhance(
    model: nn.Module | ClipEngine, samples: Samples, *, budget: float | None = ..., return_gates: Literal[False] = ...
) -> Samples: ...
@overload
def enhance(
    model: nn.Module | ClipEngine, samples: Samples, *, budget: float | None = ..., return_gates: Literal[True]
) -> tuple[Samples, list[BlockGates]]: ...
def enhance(
    model: nn.Module | ClipEngine, samples: Samples, *, budget: float | None = None, return_gates: bool = False
) -> Samples | tuple[Samples, list[BlockGates]]:
    """Enhance whole signals at the model's sample rate.

    Args:
        model: a ``ConvFSENet`` in eval mode, its folded ``InferenceConvFSENet``, which is faster, or on the CPU the
            :class:`dyncp_kernels.clip_engine.ClipEngine` of either, which is the fastest.
        samples: (N,) or (B, N) real samples, full scale 1.0, float32 or float64, numpy or torch. The network runs in
            float32 on the model's device.
        budget: share of channels to keep, 0 to 1, for a calibrated gated model; None for its trained operating point.
        return_gates: also return the gates that were used.

    Returns:
        Samples of the same kind, shape and dtype; with ``return_gates`` also one ``BlockGates`` per block, each site
        (B, channels, T or 1) or None, with T = ``stft.frame_count(N)`` and B = 1 for (N,).

    Raises:
        TypeError: samples are no array, or neither float32 nor float64.
        ValueError: another shape, NaN, infinity or absurdly large samples, a model in training mode, or a budget that
            the model cannot follow.
    """
    if model.training:
        raise ValueError("enhance: model must be in eval mode (got training mode)")
    batch, restore = checked_samples(samples, "enhance")
    config: Any = model.config
    calibration: Any = model.calibration
    shift = shift_for_budget(calibration, budget)
    with torch.no_grad():
        spectrum = transform.stft(batch.to(model_device(model)), config.n_fft, config.hop)
        features = transform.features(spectrum, config.compression)
        mask, gates = model(features, shift=shift, return_gates=True)
        enhanced = transform.istft(transform.apply_mask(spectrum, mask), batch.shape[-1], config.n_fft, config.hop)
    return (restore(enhanced), gates) if return_gates else restore(enhanced)


def model_device(model: nn.Module | ClipEngine) -> torch.device:
    """Device of the model's first tensor; the CPU for an engine."""
    if not isinstance(model, nn.Module):
        return torch.device("cpu")
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def checked_samples(samples: Any, name: str) -> tuple[Tensor, Any]:
    """Check samples (N,) or (B, N); return them as float32 (B, N) and a function that undoes the conversion.

    Raises:
        TypeError, ValueError: as ``enhance`` says, with ``name`` in front.
    """
    is_numpy = isinstance(samples, np.ndarray)
    if not is_numpy and not isinstance(samples, Tensor):
        raise TypeError(f"{name}: samples must be a numpy array or a torch tensor (got {type(samples).__name__})")
    if samples.dtype not in _FLOATS:
        raise TypeError(f"{name}: samples must be float32 or float64 (got {samples.dtype})")
    if samples.ndim not in (1, 2) or (samples.shape[0] == 0 and samples.ndim == 2):
        raise ValueError(f"{name}: samples must be (N,) or (batch, N) (got {tuple(samples.shape)})")
    # Torch warns about memory that must not be written to.
    tensor = torch.from_numpy(np.require(samples, requirements=["C", "W"])) if is_numpy else samples.detach()
    batch = (tensor if tensor.ndim == 2 else tensor[None]).float()
    _check_range(batch, name)

    def restore(result: Tensor) -> Any:
        shaped = result if tensor.ndim == 2 else result[0]
        if is_numpy:
            return shaped.cpu().numpy().astype(samples.dtype, copy=False)
        return shaped.to(tensor.device, tensor.dtype)

    return batch, restore


def within_range(values: np.ndarray[Any, Any]) -> bool:
    """Whether one quick sum shows that no sample is NaN or too large; False where it cannot tell."""
    return bool(np.vdot(values, values) <= LARGEST_SAMPLE**2)


def _check_range(samples: Tensor, name: str) -> None:
    if (samples.is_cpu and within_range(samples.numpy())) or not samples.numel():
        return
    if not torch.isfinite(samples).all():
        raise ValueError(f"{name}: samples must be finite (got NaN or infinity)")
    peak = samples.abs().max().item()
    if peak > LARGEST_SAMPLE:
        raise ValueError(f"{name}: samples must be within {LARGEST_SAMPLE:.0e} times full scale (got {peak:.3g})")
