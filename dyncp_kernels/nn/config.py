"""The geometry of Conv-FSENet in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dyncp_kernels.nn.surrogates import SURROGATES

__all__ = ["ConvFSENetConfig"]

_COUNTS = (
    "bins",
    "channels",
    "hidden",
    "kernel_size",
    "stacks",
    "gate_hidden",
    "gate_window",
    "n_fft",
    "hop",
    "sample_rate",
)
_CHOICES = {
    "activation": ("relu", "prelu"),
    "site": ("none", "output", "hidden", "both"),
    "gate_per": ("frame", "utterance", "static"),
    "gate_pooling": ("average", "exponential", "window", "centred", "global"),
    "surrogate": tuple(SURROGATES),
}


@dataclass(frozen=True)
class ConvFSENetConfig:
    """Geometry, gates and front-end parameters of a Conv-FSENet; the defaults are the paper's network.

    Args:
        bins: STFT bins, ``n_fft // 2 + 1``.
        channels: width C of the residual stream.
        hidden: width H inside a block.
        kernel_size: taps K of the depthwise convolution.
        dilations: dilation of each block of a stack, in frames.
        stacks: how often the stack is repeated.
        causal: no look-ahead; streaming needs it.
        activation: ``"prelu"`` (one slope per layer) or ``"relu"``.
        site: which channels are gated: ``"none"``, ``"output"``, ``"hidden"`` or ``"both"``.
        gate_hidden: width d of the gate network.
        gate_pooling: how the gate pools the block's input over time: ``"average"`` (running mean of all frames so
            far), ``"exponential"`` or ``"window"`` (causal); ``"centred"`` window or ``"global"`` (not causal).
        gate_window: frames of the window, or of the exponential with the same centre of mass.
        gate_per: one mask per ``"frame"``, per ``"utterance"``, or one learned ``"static"`` mask.
        surrogate: gradient of the gate's Heaviside step, a name of :mod:`dyncp_kernels.nn.surrogates`.
        surrogate_slope: its slope.
        n_fft: STFT size and window length in samples.
        hop: STFT hop in samples.
        sample_rate: in Hz.
        compression: exponent c of the input feature ``(|X| + 1e-9) ** c``.

    Raises:
        ValueError: a value is out of range or a combination cannot work; the message says which.
    """

    bins: int = 257
    channels: int = 128
    hidden: int = 256
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4)
    stacks: int = 3
    causal: bool = True
    activation: str = "prelu"
    site: str = "none"
    gate_hidden: int = 8
    gate_pooling: str = "exponential"
    gate_window: int = 8
    gate_per: str = "frame"
    surrogate: str = "sigmoid"
    surrogate_slope: float = 2.0
    n_fft: int = 512
    hop: int = 256
    sample_rate: int = 16000
    compression: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        object.__setattr__(self, "dilations", tuple(int(d) for d in self.dilations))
        for name in _COUNTS:
            if int(getattr(self, name)) < 1:
                raise ValueError(f"ConvFSENetConfig: {name} must be at least 1 (got {getattr(self, name)})")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ConvFSENetConfig: {name} must be one of {list(choices)} (got {getattr(self, name)!r})"
                )
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"ConvFSENetConfig: dilations must be positive frame counts (got {self.dilations})")
        if not self.causal and any((self.kernel_size - 1) * d % 2 for d in self.dilations):
            raise ValueError(
                "ConvFSENetConfig: a centred depthwise convolution needs an even (kernel_size - 1) * dilation "
                f"(got kernel_size={self.kernel_size}, dilations={self.dilations})"
            )
        looks_ahead = self.gate_pooling in ("centred", "global")
        if self.causal and self.site != "none" and self.gate_per == "frame" and looks_ahead:
            raise ValueError(
                f"ConvFSENetConfig: gate_pooling of a causal network must be causal (got {self.gate_pooling!r})"
            )
        if self.bins != self.n_fft // 2 + 1:
            raise ValueError(f"ConvFSENetConfig: bins must be n_fft // 2 + 1 = {self.n_fft // 2 + 1} (got {self.bins})")

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.stacks * len(self.dilations)

    @property
    def gates_hidden_channels(self) -> bool:
        """Whether the hidden channels are gated."""
        return self.site in ("hidden", "both")

    @property
    def gates_output_channels(self) -> bool:
        """Whether the output channels are gated."""
        return self.site in ("output", "both")

    @property
    def streamable(self) -> bool:
        """Whether frame t of the output depends on frames up to t only."""
        return self.causal and (self.site == "none" or self.gate_per != "utterance")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {**asdict(self), "dilations": list(self.dilations)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConvFSENetConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: an unknown key, or a value that the constructor refuses.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"ConvFSENetConfig: keys must be fields of the config (got {sorted(unknown)})")
        return cls(**values)
