"""The ops by themselves, one block of the paper's geometry: `pytest benchmarks/test_ops.py --benchmark-only`."""

import pytest
import torch

from dyncp_kernels.ops import gated_conv, gated_conv_step_
from dyncp_kernels.ops.reference import gated_conv_reference, gated_conv_step_reference

CHANNELS, HIDDEN, TAPS, FRAMES = 128, 256, 3, 250
DENSITIES = [0.0, 0.25, 1.0]


def block():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    weights = [draw(HIDDEN, CHANNELS), draw(HIDDEN), draw(HIDDEN, TAPS), draw(HIDDEN), draw(CHANNELS, HIDDEN)]
    return [*weights, draw(CHANNELS)], torch.randn(1, CHANNELS, FRAMES, generator=generator)


def gate(site, density, *shape):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(1, HIDDEN if site == "hidden" else CHANNELS, *shape, generator=generator) < density
    return (drawn, None) if site == "hidden" else (None, drawn)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("site", ["output", "hidden"])
@pytest.mark.parametrize("per", ["frame", "utterance"])
def test_gated_conv(benchmark, site, density, per):
    weights, x = block()
    gates = gate(site, density, FRAMES if per == "frame" else 1)
    y = benchmark(gated_conv, x, *gates, *weights, dilation=2)
    torch.testing.assert_close(y, gated_conv_reference(x, *gates, *weights, dilation=2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("site", ["output", "hidden"])
def test_gated_conv_backward(benchmark, site, density):
    weights, x = block()
    gates = gate(site, density, FRAMES)
    inputs = [x.requires_grad_(), *(weight.requires_grad_() for weight in weights)]
    y = gated_conv(x, *gates, *weights, dilation=2)
    grads = benchmark(torch.autograd.grad, y, inputs, torch.ones_like(y), retain_graph=True)
    expected = torch.autograd.grad(gated_conv_reference(x, *gates, *weights, dilation=2).sum(), inputs)
    for grad, wanted in zip(grads, expected):
        torch.testing.assert_close(grad, wanted, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("site", ["output", "hidden"])
def test_gated_conv_step(benchmark, site, density):
    weights, x = block()
    gates = gate(site, density)
    frame, history = x[..., 0].contiguous(), torch.zeros(1, HIDDEN, (TAPS - 1) * 2)
    expected, _ = gated_conv_step_reference(frame, history, *gates, *weights, dilation=2)
    got = gated_conv_step_(frame, history.clone(), *gates, *weights, dilation=2)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    benchmark(gated_conv_step_, frame, history, *gates, *weights, dilation=2)
