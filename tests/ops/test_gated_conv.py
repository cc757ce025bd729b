from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyncp_kernels import ops

RATIOS = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SITES = ("hidden", "output", "both")
STRATEGIES = ("automatic", "tile", "frames")
FRAMES = (0, 1, 2, 15, 16, 17, 47, 48, 49, 63, 64, 65, 100, 145)


def run(block):
    return ops.gated_conv(*block.args, **block.options)


def reference(block):
    return ops.gated_conv_reference(*block.args, **block.options)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_agrees_with_the_reference_on_random_shapes_and_options(
    data, make_block, assert_close, poisoned_empty, each_instruction_set, offline_strategy
):
    draw = data.draw
    taps, dilation = draw(st.integers(1, 5)), draw(st.sampled_from((1, 2, 3, 20)))
    residual = draw(st.booleans())
    causal = (taps - 1) * dilation % 2 == 1 or draw(st.booleans())
    block = make_block(
        draw(st.integers(0, 3)),
        draw(st.integers(1, 20)),
        draw(st.integers(1, 40)),
        draw(st.sampled_from(FRAMES)),
        taps,
        out_channels=None if residual else draw(st.integers(1, 20)),
        expand=draw(st.booleans()),
        biases=draw(st.booleans()),
        prelu=draw(st.booleans()),
        site=draw(st.sampled_from(("none", *SITES))),
        gates=draw(st.sampled_from(("bool", "float"))),
        constant=draw(st.booleans()),
        density=draw(st.sampled_from((0.0, 0.1, 0.5, 0.95, 1.0))),
        dtype=draw(st.sampled_from(list(RATIOS))),
        seed=draw(st.integers(0, 2**31)),
        dilation=dilation,
        causal=causal,
        residual=residual,
    ).poison()
    with offline_strategy(draw(st.sampled_from(STRATEGIES))):
        y = run(block)
    assert_close("y", reference(block), y, RATIOS[block.tensors["x"].dtype])


def test_reference_computes_what_conv1d_computes(make_block, assert_close):
    block = make_block(site="none", dtype=torch.float64, dilation=2)
    t = block.tensors
    f = torch.nn.functional
    u = f.prelu(f.conv1d(t["x"], t["w_in"][:, :, None], t["b_in"]), t["slope_in"])
    z = f.conv1d(f.pad(u, (4, 0)), t["w_dw"][:, None], t["b_dw"], dilation=2, groups=10)
    z = f.prelu(z, t["slope_dw"].reshape(1))
    expected = t["x"] + f.conv1d(z, t["w_out"][:, :, None], t["b_out"])
    assert_close("reference", expected, reference(block), 1e-13)


def test_reference_multiplies_by_the_gates_where_nothing_is_poisoned(make_block, assert_close):
    block = make_block(dtype=torch.float64, density=0.6, causal=False)
    t = block.tensors
    f = torch.nn.functional
    u = f.prelu(f.conv1d(t["x"], t["w_in"][:, :, None], t["b_in"]), t["slope_in"]) * t["hidden_gate"]
    z = f.conv1d(f.pad(u, (1, 1)), t["w_dw"][:, None], t["b_dw"], groups=10)
    z = f.prelu(z, t["slope_dw"].reshape(1)) * t["hidden_gate"]
    branch = f.conv1d(z, t["w_out"][:, :, None], t["b_out"])
    expected = t["x"] + t["out_gate"] * t["hidden_gate"].any(1, keepdim=True) * branch
    assert_close("reference", expected, reference(block), 1e-13)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("gates", ["bool", "float"])
@pytest.mark.parametrize("constant", [True, False])
def test_closed_gates_give_exactly_the_input(make_block, each_instruction_set, site, gates, constant):
    block = make_block(site=site, gates=gates, constant=constant, density=0.0).poison()
    assert torch.equal(run(block), block.tensors["x"])


@pytest.mark.parametrize("site", SITES)
def test_closed_gates_without_residual_give_exactly_zero(make_block, site):
    block = make_block(site=site, density=0.0, residual=False).poison()
    assert torch.equal(run(block), torch.zeros_like(block.tensors["x"]))


def test_a_frame_without_open_hidden_channel_skips_the_output_bias(make_block):
    block = make_block(site="hidden", density=1.0)
    block.tensors["hidden_gate"][0, :, 20] = False
    y, x = run(block), block.tensors["x"]
    assert torch.equal(y[0, :, 20], x[0, :, 20])
    assert not torch.equal(y[1, :, 20], x[1, :, 20])


@pytest.mark.parametrize("site", SITES)
def test_open_gates_equal_no_gates(make_block, assert_close, each_instruction_set, site):
    gated, plain = make_block(site=site, density=1.1), make_block(site="none")
    for name in ("x", "w_in", "b_in", "w_dw", "b_dw", "w_out", "b_out"):
        plain.tensors[name] = gated.tensors[name]
    assert_close("y", run(plain), run(gated), 1e-6)


def test_batch_items_have_their_own_gates(make_block, assert_close, each_instruction_set):
    block = make_block(batch=3, constant=True, density=0.5)
    together = run(block)
    for item in range(3):
        single = make_block(batch=3, constant=True, density=0.5)
        for name in ("x", "hidden_gate", "out_gate"):
            single.tensors[name] = single.tensors[name][item : item + 1]
        assert_close(f"item {item}", run(single.poison()), together[item : item + 1], 1e-6)


# Of 48 frames, whole vectors on every instruction set, outputs are written straight from the product.
@pytest.mark.parametrize("frames", [30, 48])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_channel_pruned_at_one_frame_leaks_nothing_into_it(
    make_block, each_instruction_set, offline_strategy, strategy, frames
):
    # The weights of channel 0 are NaN; only frames that it is open at, or whose history it is in, may turn NaN.
    block = make_block(batch=1, frames=frames, site="hidden", density=1.1, dilation=1, taps=3)
    block.tensors["hidden_gate"][0, 0] = False
    block.tensors["hidden_gate"][0, 0, 10:12] = True
    for name in ("w_in", "b_in", "w_dw", "b_dw"):
        block.tensors[name][0] = float("nan")
    block.tensors["w_out"][:, 0] = float("nan")
    with offline_strategy(strategy):
        y = run(block)
    for result in (y, reference(block)):
        assert torch.isnan(result).any(1)[0].nonzero()[:, 0].tolist() == [10, 11]


@pytest.mark.parametrize("frames", [30, 48])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_output_row_pruned_at_one_frame_leaks_nothing_into_it(
    make_block, each_instruction_set, offline_strategy, strategy, frames
):
    block = make_block(batch=1, frames=frames, site="output", density=1.1)
    block.tensors["out_gate"][0, 2, 5:9] = False
    block.tensors["w_out"][2] = float("nan")
    with offline_strategy(strategy):
        y = run(block)
    assert torch.isnan(y[0, 2]).logical_not().nonzero()[:, 0].tolist() == [5, 6, 7, 8]
    assert not torch.isnan(y[0, [0, 1, 3, 4, 5]]).any()


@pytest.mark.parametrize("causal", [True, False])
def test_non_contiguous_tensors_give_the_same(make_block, assert_close, causal):
    block = make_block(causal=causal, density=0.5)
    for name in ("hidden_gate", "out_gate"):
        block.tensors[name][:, ::4] = False
    block.poison()
    expected = run(block)
    t = block.tensors
    t["x"] = t["x"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    t["hidden_gate"] = t["hidden_gate"].transpose(1, 2).contiguous().transpose(1, 2)
    t["w_in"] = t["w_in"].t().contiguous().t()
    t["w_out"] = t["w_out"].t().contiguous().t()
    t["w_dw"] = t["w_dw"].repeat_interleave(2, 1)[:, ::2]
    t["b_out"] = t["b_out"].repeat_interleave(2)[::2]
    assert not any(t[name].is_contiguous() for name in ("x", "hidden_gate", "w_in", "w_out", "w_dw", "b_out"))
    assert_close("y", expected, run(block), 1e-6)


def test_a_gate_expanded_over_time_equals_a_constant_gate(make_block):
    block = make_block(constant=True)
    expected = run(block)
    for name in ("hidden_gate", "out_gate"):
        block.tensors[name] = block.tensors[name].expand(-1, -1, 53)
    assert torch.equal(run(block), expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("site", ["none", "hidden", "output", "both"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_result_does_not_depend_on_the_number_of_threads(
    make_block, each_instruction_set, causal, site, strategy, offline_strategy, with_threads
):
    # A look-ahead and a past of more than one tile; channels of all densities, some of them pruned throughout.
    block = make_block(3, 32, 50, 500, taps=5, site=site, causal=causal, dilation=21)
    for name in ("hidden_gate", "out_gate"):
        gate = block.tensors[name]
        if gate is not None:
            density = torch.linspace(-0.2, 1.2, gate.shape[1])[None, :, None]
            gate.copy_(torch.rand(gate.shape, generator=torch.Generator().manual_seed(1)) < density)
    block.poison()
    with offline_strategy(strategy):
        results = with_threads((1, 2, 3, 5), lambda: run(block))
    assert torch.isfinite(results[0]).all()
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_results_are_the_rounded_float32_results(make_block, dtype):
    block = make_block(channels=32, hidden=64, dtype=dtype)
    wide = make_block(channels=32, hidden=64, dtype=dtype)
    wide.tensors = {
        name: value.float() if value is not None and value.is_floating_point() else value
        for name, value in wide.tensors.items()
    }
    # Bitwise, though the sums have hundreds of terms: nothing in between was rounded to 16 bits.
    assert torch.equal(run(block), run(wide).to(dtype))


def test_infinite_and_subnormal_16_bit_values_survive(each_instruction_set):
    values = torch.tensor([float("inf"), -float("inf"), 65504.0, 6e-8, -6e-8, 6.1e-5, 0.0, -0.0, 1.0])
    for dtype in (torch.float16, torch.bfloat16):
        x = values.to(dtype).reshape(1, 1, -1)
        one = torch.ones(1, 1, dtype=dtype)
        closed = torch.zeros(1, 1, 1, dtype=torch.bool)
        assert torch.equal(ops.gated_conv(x, None, closed, None, None, one, None, one, None), x)
        y = ops.gated_conv(x, None, None, None, None, one, None, one, None, residual=False)
        assert torch.equal(y, torch.relu(x))


def test_nan_in_the_input_stays_nan(make_block):
    block = make_block(site="none")
    block.tensors["x"][0, :, 7] = float("nan")
    frames = torch.isnan(run(block)).any(1)[0].nonzero()[:, 0].tolist()
    assert frames == [7, 8, 9]


def test_the_environment_variable_chooses_the_instruction_set(needs_extension):
    code = "from dyncp_kernels import _extension; print(_extension.instruction_set())"
    script = [sys.executable, "-c", code]
    out = subprocess.run(script, capture_output=True, text=True, env={"DYNCP_ISA": "portable"}, check=True)
    assert out.stdout.strip() == "portable"
    failed = subprocess.run(script, capture_output=True, text=True, env={"DYNCP_ISA": "abacus"})
    assert failed.returncode != 0
    assert "DYNCP_ISA: must name an instruction set of this processor and build" in failed.stderr
    assert "(got abacus)" in failed.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_input_channels_leave_the_biases(assert_close, each_instruction_set, dtype):
    x, w_in, b_in = torch.zeros(2, 0, 9, dtype=dtype), torch.zeros(5, 0, dtype=dtype), torch.randn(5).to(dtype)
    w_dw, w_out = torch.randn(5, 3).to(dtype), torch.randn(4, 5).to(dtype)
    arguments = (x, None, None, w_in, b_in, w_dw, None, w_out, None)
    expected = ops.gated_conv_reference(*arguments, residual=False)
    assert_close("y", expected, ops.gated_conv(*arguments, residual=False), 1e-6 if dtype != torch.bfloat16 else 1e-2)
    history = torch.zeros(2, 5, 2, dtype=dtype)
    y, _ = ops.gated_conv_step(x[..., 0], history, *arguments[1:], residual=False)
    assert_close("y of a step", expected[..., 0], y, 1e-6 if dtype != torch.bfloat16 else 1e-2)
    b_in.requires_grad_()
    ops.gated_conv(*arguments, residual=False).sum().backward()
    assert torch.isfinite(b_in.grad).all()
