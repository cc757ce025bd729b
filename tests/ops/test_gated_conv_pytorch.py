"""The ops as citizens of PyTorch: opcheck, autocast, compile, export, AOTInductor, and life without the extension."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing

from dyncp_kernels import _extension, ops
from dyncp_kernels.ops._schemas import SCHEMAS

SAMPLES = {
    "plain": {"site": "none", "biases": False, "prelu": False},
    "bool gates": {"density": 0.3},
    "constant bool gates": {"constant": True},
    "float gates": {"gates": "float", "causal": False},
    "no expansion": {"expand": False, "residual": False, "out_channels": 3},
    "one frame": {"frames": 1},
    "bfloat16": {"dtype": torch.bfloat16},
}


def with_grad(arguments):
    return [
        value.detach().clone().requires_grad_() if value is not None and value.is_floating_point() else value
        for value in arguments
    ]


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck_of_the_offline_op(make_block, sample):
    block = make_block(**{"frames": 9, **SAMPLES[sample]})
    torch.library.opcheck(torch.ops.dyncp.gated_conv.default, with_grad(block.args), block.options)


@pytest.mark.parametrize("sample", ["plain", "float gates", "no expansion"])
def test_opcheck_of_the_backward_op(make_block, sample):
    block = make_block(**{"frames": 9, **SAMPLES[sample]})
    grad = torch.randn(2, block.tensors["w_out"].shape[0], 9)
    torch.library.opcheck(torch.ops.dyncp.gated_conv_backward.default, [grad, *block.args], block.options)


@pytest.mark.parametrize("sample", ["plain", "bool gates", "bfloat16"])
@pytest.mark.parametrize("op", ["gated_conv_step", "gated_conv_step_"])
def test_opcheck_of_the_step_ops(make_block, sample, op):
    x, hidden_gate, out_gate, *weights = make_block(**{"frames": 9, **SAMPLES[sample]}).args
    gates = [None if gate is None else gate[:, :, 0] for gate in (hidden_gate, out_gate)]
    history = x.new_zeros(2, 10, 2)
    overload = getattr(torch.ops.dyncp, op).default
    torch.library.opcheck(overload, [x[:, :, 0].contiguous(), history, *gates, *weights])


@pytest.mark.parametrize("op", SCHEMAS)
def test_the_schema_without_the_extension_is_the_schema_of_the_extension(op):
    expected = torch._C.parse_schema(f"dyncp::{op}{SCHEMAS[op]}")
    assert str(getattr(torch.ops.dyncp, op).default._schema) == str(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_the_asked_dtype(make_block, assert_close, dtype):
    block = make_block(gates="float", density=0.5)
    arguments = with_grad(block.args)
    with torch.autocast("cpu", dtype=dtype):
        y = ops.gated_conv(*arguments, dilation=2)
        frame, history = block.args[0][:, :, 0], torch.zeros(2, 10, 4)
        step = ops.gated_conv_step(frame, history, None, None, *block.args[3:], dilation=2)
        in_place = ops.gated_conv_step_(frame, history, None, None, *block.args[3:], dilation=2)
    assert y.dtype == dtype
    assert [result.dtype for result in step] == [dtype, dtype]
    assert torch.equal(in_place, step[0])
    assert torch.equal(history, step[1].float())
    assert_close("y", ops.gated_conv(*block.args, dilation=2), y, 3e-2)
    y.float().sum().backward()
    assert all(value.grad.dtype == torch.float32 for value in arguments if value is not None)


def test_autocast_leaves_float64_alone(make_block):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.gated_conv(*make_block(dtype=torch.float64).args).dtype == torch.float64


class Gated(torch.nn.Module):
    """A block whose gates are computed inside the graph."""

    def __init__(self, block):
        super().__init__()
        self.threshold = torch.nn.Buffer(torch.tensor(0.0))
        for name, value in block.tensors.items():
            if name not in ("x", "hidden_gate", "out_gate"):
                setattr(self, name, torch.nn.Parameter(value.clone()))

    def forward(self, x):
        hidden_gate = (self.w_in @ x) > self.threshold
        t = (self.w_in, self.b_in, self.w_dw, self.b_dw, self.w_out, self.b_out, self.slope_in, self.slope_dw)
        return ops.gated_conv(torch.sin(x), hidden_gate, x > self.threshold, *t, dilation=2).relu()


def test_compile_keeps_one_graph_when_density_and_frames_change(make_block, assert_close):
    model = Gated(make_block())
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for frames, threshold in ((20, 0.0), (31, -10.0), (48, 10.0), (7, 0.5)):
        x = torch.randn(2, 6, frames)
        model.threshold.fill_(threshold)
        assert_close(f"{frames} frames", model(x), compiled(x), 1e-6)
    assert counter.frame_count == 1


def test_compiled_training_step_has_the_gradients_of_eager(make_block, assert_close):
    model = Gated(make_block())
    x = torch.randn(2, 6, 33)
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    for run in (model, compiled):
        model.zero_grad()
        run(x).pow(2).sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        if run is model:
            expected = gradients
    for name, gradient in gradients.items():
        assert_close(name, expected[name], gradient, 1e-5)


def test_the_in_place_step_compiles(make_block, assert_close):
    x, hidden_gate, out_gate, *weights = make_block().args
    gates = hidden_gate[:, :, 0], out_gate[:, :, 0]

    def step(frame, history):
        return ops.gated_conv_step_(frame, history, *gates, *weights)

    eager, compiled = torch.zeros(2, 10, 2), torch.zeros(2, 10, 2)
    run = torch.compile(step, fullgraph=True, backend="aot_eager")
    for t in range(3):
        assert_close("y", step(x[:, :, t], eager), run(x[:, :, t], compiled), 1e-6)
    assert torch.equal(eager, compiled)


@pytest.fixture
def exported(make_block):
    model = Gated(make_block()).eval()
    frames = torch.export.Dim("frames", min=2, max=1000)
    with torch.no_grad():
        return model, torch.export.export(model, (torch.randn(2, 6, 20),), dynamic_shapes=({2: frames},))


def test_export_round_trip_with_dynamic_frames(exported, assert_close, tmp_path):
    model, program = exported
    torch.export.save(program, tmp_path / "block.pt2")
    loaded = torch.export.load(tmp_path / "block.pt2").module()
    for frames in (20, 33):
        x = torch.randn(2, 6, frames)
        assert_close(f"{frames} frames", model(x), loaded(x), 1e-6)


def test_aot_inductor_round_trip(exported, assert_close, tmp_path):
    model, program = exported
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "block.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    for frames in (20, 33):
        x = torch.randn(2, 6, frames)
        assert_close(f"{frames} frames", model(x), loaded(x), 1e-6)


WITHOUT_EXTENSION = """
import pathlib, sys, warnings
import torch
import torch._dynamo.testing
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path: not path.name.startswith("_C.") and exists(path)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from dyncp_kernels import _extension, ops
messages = [str(w.message) for w in caught if "dyncp_kernels" in str(w.message)]
assert len(messages) == 1, messages
assert "pip install . --no-build-isolation" in messages[0]
assert not _extension.extension_loaded() and _extension.instruction_set() == "none"
arguments = torch.load(sys.argv[1])
leaf = arguments[0].requires_grad_()
y = torch.ops.dyncp.gated_conv(*arguments, dilation=2)
y.sum().backward()
history = torch.zeros(2, 10, 4)
step = torch.ops.dyncp.gated_conv_step_(leaf[:, :, 0].detach(), history, None, None, *arguments[3:], dilation=2)
try:
    ops.gated_conv(*arguments, dilation=0)
except RuntimeError as error:
    assert str(error).startswith("gated_conv: dilation must be at least 1 (got 0)"), error
else:
    raise AssertionError("dilation 0 was accepted")
torch.save((y.detach(), leaf.grad, step, history), sys.argv[2])
"""


def test_without_the_extension_the_ops_run_on_the_reference_with_one_warning(make_block, assert_close, tmp_path):
    arguments = make_block().args
    torch.save(arguments, tmp_path / "in.pt")
    script = [sys.executable, "-c", WITHOUT_EXTENSION, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run(script, check=True, cwd=Path(_extension.__file__).parents[1])
    y, grad, step, history = torch.load(tmp_path / "out.pt")

    leaf = arguments[0].requires_grad_()
    expected = ops.gated_conv(*arguments, dilation=2)
    expected.sum().backward()
    before = torch.zeros(2, 10, 4)
    x = leaf[:, :, 0].detach()
    assert_close("y", expected, y, 1e-5)
    assert_close("gradient", leaf.grad, grad, 1e-5)
    assert_close("step", ops.gated_conv_step_(x, before, None, None, *arguments[3:], dilation=2), step, 1e-5)
    assert_close("history", before, history, 1e-5)


def test_importing_with_the_extension_warns_of_nothing(needs_extension):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _extension.warn_when_missing()
