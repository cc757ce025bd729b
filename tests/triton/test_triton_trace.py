"""torch.compile's tracing of the ops down to their Triton kernels, without a GPU."""

from __future__ import annotations

import pytest
import torch

import dyncp_kernels.ops as ops
from dyncp_kernels.ops import backends

triton = pytest.importorskip("triton", reason="triton is not installed")


class HopperDriver:
    """What tracing asks of a driver: the target."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def on_triton(monkeypatch):
    """CPU tensors are traced as if the Triton back-end ran them."""
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", HopperDriver(), raising=False)
    monkeypatch.setattr(backends, "_traced_device", "cpu")
    monkeypatch.setattr(backends, "chosen", lambda dtype=torch.float32: "triton")


def _arguments():
    torch.manual_seed(0)
    x = torch.randn(2, 32, 40)
    gate = torch.rand(2, 48, 40) < 0.5
    w_in, w_dw, w_out = torch.randn(48, 32), torch.randn(48, 3), torch.randn(32, 48)
    return x, gate, w_in, w_dw, w_out


def _trace(function, arguments):
    """Kernel nodes and opaque dyncp nodes of the traced graphs, forward and backward."""
    from functorch.compile import aot_function, make_boxed_func

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        values = [None if node is None else node.meta["val"] for node in outputs]
        sizes = [None if value is None else (tuple(value.shape), value.dtype) for value in values]
        return make_boxed_func(lambda *args: [None if s is None else torch.zeros(s[0], dtype=s[1]) for s in sizes])

    out = aot_function(function, fw_compiler=keep, bw_compiler=keep)(*arguments)
    return graphs, out


# What the kernels write; if torch's analysis of a kernel fails, it takes all arguments for written and copies them.
RESULTS = {"order", "count", "opened", "frame_open", "padded", "y", "z", "product", "row_sum", "updated"}
RESULTS |= {"grad_c", "grad_gate", "grad_row", "grad_a", "grad_slope"}


def _written(graph):
    nodes = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    return {name for node in nodes for name in node.kwargs["tensors_to_clone"]}


def _targets(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_forward_and_backward_trace_to_kernels(on_triton):
    x, gate, w_in, w_dw, w_out = _arguments()
    weights = [w.requires_grad_() for w in (w_in, w_dw, w_out)]

    def block(x, gate, w_in, w_dw, w_out):
        return ops.gated_conv(x, gate, None, w_in, None, w_dw, None, w_out, None)

    graphs, out = _trace(block, (x, gate, *weights))
    out.sum().backward()
    assert len(graphs) == 2
    for graph, kernels in zip(graphs, (2, 6)):
        targets = _targets(graph)
        assert sum("triton_kernel_wrapper" in target for target in targets) >= kernels
        assert not any("dyncp" in target for target in targets)
        assert _written(graph) <= RESULTS


class _Launched:
    """Stands for a kernel that Inductor has compiled."""

    def __init__(self, name, launches):
        self.name = name
        self.launches = launches

    def run(self, *args, **options):
        self.launches.append(self.name)


def test_inductor_generates_the_code_around_the_kernels(on_triton, monkeypatch):
    """Only the kernels themselves are left out, which need a GPU."""
    from torch._inductor.async_compile import AsyncCompile

    launches = []
    monkeypatch.setattr(AsyncCompile, "triton", lambda self, name, *args, **options: _Launched(name, launches))
    x, gate, w_in, w_dw, w_out = _arguments()
    x.requires_grad_()
    w_in.requires_grad_()

    def block(x, w_in):
        return ops.gated_conv(x, gate, None, w_in, None, w_dw, None, w_out, None)

    torch._dynamo.reset()
    y = torch.compile(block, fullgraph=True)(x, w_in)
    assert launches == ["list_channels", "pointwise", "depthwise", "pointwise"]
    y.backward(torch.ones_like(y))
    again = {"list_channels", "pad_frames", "pointwise"}
    assert set(launches[4:-4]) == again
    assert launches[-4:] == ["depthwise_gradient", "expansion_gradient", "pointwise", "weight_gradient"]
    torch._dynamo.reset()


def test_gates_may_be_computed_in_the_compiled_function(on_triton, monkeypatch):
    """The gate reaches the kernels as booleans: torch cannot view them as bytes in a kernel of its own."""
    from torch._inductor.async_compile import AsyncCompile

    gates = []

    class Launched(_Launched):
        def run(self, *args, **options):
            gates.extend(arg.dtype for arg in args[:2] if arg.shape[1:] == (48, 40) and arg.dtype != torch.float32)

    monkeypatch.setattr(AsyncCompile, "triton", lambda self, name, *args, **options: Launched(name, []))
    x, _, w_in, w_dw, w_out = _arguments()

    def block(x, scores):
        return ops.gated_conv(x, scores > 0, None, w_in, None, w_dw, None, w_out, None)

    torch._dynamo.reset()
    torch.compile(block, fullgraph=True)(x, torch.randn(2, 48, 40))
    assert set(gates) == {torch.bool}
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_graph_serves_lengths_of_equal_divisors(on_triton, monkeypatch, dtype):
    from torch._dynamo.utils import counters
    from torch._inductor.async_compile import AsyncCompile

    monkeypatch.setattr(AsyncCompile, "triton", lambda self, name, *args, **options: _Launched(name, []))
    weights = [w.to(dtype) for w in _arguments()[2:]]

    def block(x, gate):
        return ops.gated_conv(x, gate, None, weights[0], None, weights[1], None, weights[2], None)

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(block, fullgraph=True)
    for frames in (48, 64, 80, 112):
        x, gate = torch.randn(2, 32, frames, dtype=dtype), torch.rand(2, 48, frames) < 0.5
        for tensor in (x, gate):
            torch._dynamo.mark_dynamic(tensor, 2)
        compiled(x, gate)
    assert counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()


def test_caches_on_disk_know_the_kernels_and_the_choice_of_back_end(on_triton, monkeypatch, tmp_path):
    from torch._dynamo.utils import counters
    from torch._inductor.async_compile import AsyncCompile

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(AsyncCompile, "triton", lambda self, name, *args, **options: _Launched(name, []))
    x, gate, w_in, w_dw, w_out = _arguments()

    def hits_and_misses():
        torch._dynamo.reset()
        counters.clear()
        torch.compile(lambda x: ops.gated_conv(x, gate, None, w_in, None, w_dw, None, w_out, None))(x)
        seen = counters["aot_autograd"]
        return seen["autograd_cache_hit"], seen["autograd_cache_miss"]

    assert hits_and_misses() == (0, 1)
    assert hits_and_misses() == (1, 0)
    monkeypatch.setenv(backends.VARIABLE, "triton")
    assert hits_and_misses() == (0, 1)
    monkeypatch.setattr(backends, "_digest_of_sources", lambda: "other kernels")
    assert hits_and_misses() == (0, 1)
    torch._dynamo.reset()


@pytest.mark.parametrize("site", ["none", "hidden", "output", "both"])
def test_step_traces_to_one_kernel_and_memory_for_it(on_triton, site):
    x, gate, w_in, w_dw, w_out = _arguments()

    def step(x, history, gate, out_gate, w_in, w_dw, w_out):
        gates = [gate if site in ("hidden", "both") else None, out_gate if site in ("output", "both") else None]
        return ops.gated_conv_step(x, history, *gates, w_in, None, w_dw, None, w_out, None)

    frame, open_now = x[:, :, 0].contiguous(), gate[:, :, 0].contiguous()
    graphs, _ = _trace(step, (frame, torch.zeros(2, 48, 2), open_now, open_now[:, :32], w_in, w_dw, w_out))
    targets = [target for target in _targets(graphs[0]) if "getitem" not in target]
    assert sum("triton_kernel_wrapper" in target for target in targets) == 1
    assert all("triton_kernel_wrapper" in target or "empty" in target for target in targets)
    assert _written(graphs[0]) <= RESULTS


def test_cpu_tensors_stay_one_node_of_the_graph():
    x, gate, w_in, w_dw, w_out = _arguments()

    def block(x, gate, w_in, w_dw, w_out):
        return ops.gated_conv(x, gate, None, w_in, None, w_dw, None, w_out, None)

    graphs, _ = _trace(block, (x, gate, w_in, w_dw, w_out))
    assert _targets(graphs[0]) == ["dyncp.gated_conv.default"]
