"""What only a GPU shows: streams, graphs, compilation, automatic differentiation, long inputs, many streams."""

from __future__ import annotations

import pytest
import torch

import dyncp_kernels.ops as ops
from dyncp_kernels.ops import backends
from dyncp_kernels.ops.reference import gated_conv_reference, gated_conv_step_reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    reason = backends.BACKENDS[request.param].unavailable()
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    torch.manual_seed(0)
    with backends.use(request.param):
        yield request.param


def draw(batch, channels, hidden, frames, density=0.3, dtype=torch.float32):
    """Input, hidden gate, output gate and weights on the GPU."""

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, device="cuda")).to(dtype)

    gates = [torch.rand(batch, rows, frames, device="cuda") < density for rows in (hidden, channels)]
    weights = [normal(hidden, channels, scale=0.1), normal(hidden), normal(hidden, 3), normal(hidden)]
    weights += [normal(channels, hidden, scale=0.1), normal(channels)]
    slopes = [torch.full((1,), 0.25, device="cuda", dtype=dtype) for _ in range(2)]
    return normal(batch, channels, frames), gates, weights + slopes


def close(expected, actual, tolerance=1e-5):
    return ((expected.double() - actual.double()).norm() <= tolerance * expected.double().norm()).item()


@pytest.mark.parametrize(("channels", "hidden"), [(128, 256), (256, 512), (512, 1024), (512, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_listed_width(backend, channels, hidden, dtype):
    x, gates, weights = draw(2, channels, hidden, 250, dtype=dtype)
    expected = gated_conv_reference(x, *gates, *weights, dilation=4)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    assert close(expected, ops.gated_conv(x, *gates, *weights, dilation=4), tolerance)


def test_tf32_when_torch_allows_it(backend):
    x, gates, weights = draw(2, 128, 256, 250)
    expected = gated_conv_reference(x, *gates, *weights)
    torch.set_float32_matmul_precision("high")
    try:
        y = ops.gated_conv(x, *gates, *weights)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert close(expected, y, 2e-3)
    assert not torch.equal(y, ops.gated_conv(x, *gates, *weights))


def test_tf32_when_only_the_newer_setting_allows_it(backend):
    x, gates, weights = draw(2, 128, 256, 250)
    exact = ops.gated_conv(x, *gates, *weights)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        y = ops.gated_conv(x, *gates, *weights)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert close(exact, y, 2e-3)
    assert not torch.equal(exact, y)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_arguments(backend):
    x, gates, weights = draw(2, 128, 256, 250)
    expected = ops.gated_conv(x, *gates, *weights)
    there = [tensor.to("cuda:1") for tensor in (x, *gates, *weights)]
    y = ops.gated_conv(*there)
    assert y.device == torch.device("cuda:1")
    assert close(expected.cpu(), y.cpu(), 1e-6)


def test_runs_on_the_current_stream(backend):
    x, gates, weights = draw(4, 128, 256, 250)
    expected = ops.gated_conv(x, *gates, *weights)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late = x.clone()
        y = ops.gated_conv(late, *gates, *weights)
    stream.synchronize()
    assert torch.equal(expected, y)


def test_graph_replays_with_new_gates(backend):
    """The number of open channels is read on the device: a captured graph follows its gates."""
    x, gates, weights = draw(2, 128, 256, 250)
    ops.gated_conv(x, *gates, *weights)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.gated_conv(x, *gates, *weights)
    for density in (0.0, 0.1, 0.9):
        for gate in gates:
            gate.copy_(torch.rand(gate.shape, device="cuda") < density)
        x.normal_()
        graph.replay()
        assert close(gated_conv_reference(x, *gates, *weights), y)


def test_step_graph_for_many_streams(backend):
    for streams in (1, 16, 256, 4096):
        x, gates, weights = draw(streams, 128, 256, 1)
        frame, now = x[:, :, 0].contiguous(), [gate[:, :, 0].contiguous() for gate in gates]
        history = torch.randn(streams, 256, 4, device="cuda")
        ops.gated_conv_step(frame, history, *now, *weights, dilation=2)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, updated = ops.gated_conv_step(frame, history, *now, *weights, dilation=2)
        frame.normal_()
        graph.replay()
        expected = gated_conv_step_reference(frame, history, *now, *weights, dilation=2)
        assert close(expected[0], y)
        assert close(expected[1], updated)


def test_step_in_place_replays_frame_after_frame(backend):
    x, gates, weights = draw(16, 128, 256, 1)
    frame, now = x[:, :, 0].contiguous(), [gate[:, :, 0].contiguous() for gate in gates]
    history = torch.zeros(16, 256, 4, device="cuda")
    ops.gated_conv_step_(frame, history.clone(), *now, *weights, dilation=2)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.gated_conv_step_(frame, history, *now, *weights, dilation=2)
    state = torch.zeros(16, 256, 4, device="cuda")
    for _ in range(6):
        frame.normal_()
        for gate in now:
            gate.copy_(torch.rand(gate.shape, device="cuda") < 0.3)
        graph.replay()
        expected, state = gated_conv_step_reference(frame, state, *now, *weights, dilation=2)
        assert close(expected, y)
        assert close(state, history)


def test_graph_of_the_gradient_replays(backend):
    x, gates, weights = draw(2, 128, 256, 250)
    grad = torch.randn_like(x)
    backward = torch.ops.dyncp.gated_conv_backward
    backward(grad, x, *gates, *weights)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = backward(grad, x, *gates, *weights)
    grad.normal_()
    for gate in gates:
        gate.copy_(torch.rand(gate.shape, device="cuda") < 0.6)
    graph.replay()
    for want, have in zip(backward(grad, x, *gates, *weights), results):
        assert torch.equal(want, have)


def test_gradients_reach_leaves(backend):
    x, gates, weights = draw(2, 128, 256, 250)
    leaves = [tensor.requires_grad_() for tensor in (x, *weights)]
    grad = torch.randn(2, 128, 250, device="cuda")
    actual = torch.autograd.grad(ops.gated_conv(x, *gates, *weights), leaves, grad)
    expected = torch.autograd.grad(gated_conv_reference(x, *gates, *weights), leaves, grad)
    for want, have in zip(expected, actual):
        assert close(want, have, 1e-4)


def test_compiled_function_equals_eager(backend):
    x, gates, weights = draw(2, 128, 256, 100)

    def block(x):
        return torch.relu(ops.gated_conv(x, *gates, *weights)) + 1

    compiled = torch.compile(block, fullgraph=True)
    assert close(block(x), compiled(x), 1e-6)


def test_compiled_gradients_equal_eager(backend):
    x, gates, weights = draw(2, 128, 256, 100)
    leaves = [tensor.requires_grad_() for tensor in (x, *weights)]
    grad = torch.randn(2, 128, 100, device="cuda")

    def block(x, *weights):
        return ops.gated_conv(x, *gates, *weights)

    expected = torch.autograd.grad(block(*leaves), leaves, grad)
    actual = torch.autograd.grad(torch.compile(block, fullgraph=True)(*leaves), leaves, grad)
    for want, have in zip(expected, actual):
        assert close(want, have, 1e-5)


def test_compiled_step_equals_eager(backend):
    x, gates, weights = draw(16, 128, 256, 1)
    frame, now = x[:, :, 0].contiguous(), [gate[:, :, 0].contiguous() for gate in gates]
    history = torch.randn(16, 256, 4, device="cuda")

    def step(frame, history):
        return ops.gated_conv_step(frame, history, *now, *weights, dilation=2)

    for want, have in zip(step(frame, history), torch.compile(step, fullgraph=True)(frame, history)):
        assert close(want, have, 1e-6)


def test_more_than_2_to_the_31_values(backend):
    """The last frames of a long item equal those of its end alone."""
    frames = 2**31 // 128 + 1000
    if torch.cuda.mem_get_info()[0] < 20 * 128 * frames:
        pytest.skip("needs about 45 GB of free memory on the GPU")
    x = torch.randn(1, 128, 64, device="cuda", dtype=torch.bfloat16).repeat(1, 1, frames // 64 + 1)[:, :, :frames]
    x = x.contiguous()
    _, _, weights = draw(1, 128, 256, 1, dtype=torch.bfloat16)
    gate = torch.rand(1, 256, 1, device="cuda") < 0.3
    y = ops.gated_conv(x, gate, None, *weights)
    end = ops.gated_conv(x[:, :, -300:].contiguous(), gate, None, *weights)
    assert close(end[:, :, 10:], y[:, :, -290:], 1e-3)
