from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from dyncp_kernels import _extension

TENSORS = (
    *("x", "hidden_gate", "out_gate", "w_in", "b_in", "w_dw", "b_dw", "w_out", "b_out"),
    *("slope_in", "slope_dw"),
)


@dataclass
class Block:
    """Arguments of one call of gated_conv."""

    tensors: dict[str, torch.Tensor | None]
    options: dict[str, int | bool] = field(default_factory=dict)

    @property
    def args(self) -> list[torch.Tensor | None]:
        return [self.tensors[name] for name in TENSORS]

    def poison(self) -> Block:
        """Put NaN in all weights of channels that the gates prune in every batch item at every frame."""
        for name, rows, columns in (
            ("hidden_gate", ("w_in", "b_in", "w_dw", "b_dw"), ("w_out",)),
            ("out_gate", ("w_out", "b_out"), ()),
        ):
            gate = self.tensors[name]
            if gate is None or gate.numel() == 0:
                continue
            pruned = ~(gate != 0).any(2).any(0)
            for weight in rows:
                if self.tensors[weight] is not None:
                    self.tensors[weight][pruned] = float("nan")
            for weight in columns:
                self.tensors[weight][:, pruned] = float("nan")
        return self


def _make_block(
    batch=2,
    channels=6,
    hidden=10,
    frames=53,
    taps=3,
    *,
    out_channels=None,
    expand=True,
    biases=True,
    prelu=True,
    site="both",
    gates="bool",
    constant=False,
    density=0.4,
    dtype=torch.float32,
    seed=0,
    **options,
):
    """A block of random tensors; with batch > 1 every item has its own gates."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    def gate(rows):
        shape = (batch, rows, 1 if constant else frames)
        kept = torch.rand(shape, generator=generator) < density
        if gates == "bool":
            return kept
        return (kept * (0.5 + torch.rand(shape, generator=generator))).to(dtype)

    if not expand:
        hidden = channels
    out_channels = out_channels or channels
    tensors = {
        "x": normal(batch, channels, frames),
        "hidden_gate": gate(hidden) if site in ("hidden", "both") else None,
        "out_gate": gate(out_channels) if site in ("output", "both") else None,
        "w_in": normal(hidden, channels, scale=channels**-0.5) if expand else None,
        "b_in": normal(hidden) if expand and biases else None,
        "w_dw": normal(hidden, taps, scale=taps**-0.5),
        "b_dw": normal(hidden) if biases else None,
        "w_out": normal(out_channels, hidden, scale=hidden**-0.5),
        "b_out": normal(out_channels) if biases else None,
        "slope_in": torch.tensor([0.25], dtype=dtype) if prelu and expand else None,
        "slope_dw": torch.tensor(-0.3, dtype=dtype) if prelu else None,
    }
    return Block(tensors, options)


@pytest.fixture(scope="session")
def make_block():
    return _make_block


@contextmanager
def _offline_strategy(name):
    if not _extension.extension_loaded():
        yield
        return
    _extension.set_offline_strategy(name)
    try:
        yield
    finally:
        _extension.set_offline_strategy("automatic")


@pytest.fixture(scope="session")
def offline_strategy():
    """offline_strategy(name) is a context in which gated_conv uses that strategy; no effect without the extension."""
    return _offline_strategy
