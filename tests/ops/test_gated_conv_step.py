from __future__ import annotations

import pytest
import torch

from dyncp_kernels import ops


def frame_of(block, t):
    """Arguments of the step for frame t, without the history."""
    x, hidden, out, *weights = block.args
    gates = [None if gate is None else gate[:, :, min(t, gate.shape[2] - 1)] for gate in (hidden, out)]
    return x[:, :, t], *gates, *weights


def stream(block, step):
    """All frames through `step(x, history, ...) -> (y, history)`."""
    x = block.tensors["x"]
    hidden, taps = block.tensors["w_dw"].shape
    history = x.new_zeros(x.shape[0], hidden, (taps - 1) * block.options["dilation"])
    frames = []
    for t in range(x.shape[2]):
        frame, *rest = frame_of(block, t)
        y, history = step(frame, history, *rest, **block.options)
        frames.append(y)
    return torch.stack(frames, 2)


def in_place(x, history, *rest, **options):
    return ops.gated_conv_step_(x, history, *rest, **options), history


@pytest.mark.parametrize("site", ["none", "hidden", "output", "both"])
@pytest.mark.parametrize("step", [ops.gated_conv_step, in_place, ops.gated_conv_step_reference])
@pytest.mark.parametrize("constant", [True, False])
def test_frame_by_frame_equals_offline(
    make_block, assert_close, poisoned_empty, each_instruction_set, site, step, constant
):
    block = make_block(2, 19, 37, 30, site=site, constant=constant, density=0.3, dilation=2).poison()
    offline = ops.gated_conv(*block.args, **block.options)
    assert_close("stream", offline, stream(block, step), 1e-5)
    assert (stream(block, step) - offline).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gates", ["bool", "float"])
def test_other_dtypes_and_floating_gates(make_block, assert_close, each_instruction_set, dtype, gates):
    ratio = {torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    block = make_block(2, 19, 37, 12, gates=gates, dtype=dtype, dilation=1).poison()
    expected = stream(block, ops.gated_conv_step_reference)
    assert_close("stream", expected, stream(block, ops.gated_conv_step), ratio)


@pytest.mark.parametrize("options", [{"expand": False}, {"taps": 1}, {"residual": False, "out_channels": 5}])
def test_without_expansion_with_one_tap_and_without_residual(make_block, assert_close, options):
    block = make_block(dilation=3, **options).poison()
    assert_close("stream", ops.gated_conv(*block.args, **block.options), stream(block, ops.gated_conv_step), 1e-5)


@pytest.mark.parametrize("site", ["hidden", "output", "both"])
def test_transposed_projection_gives_the_same(make_block, assert_close, each_instruction_set, site):
    block = make_block(2, 19, 37, 9, site=site, dilation=1).poison()
    expected = stream(block, ops.gated_conv_step)
    block.tensors["w_out"] = block.tensors["w_out"].t().contiguous().t()
    assert_close("stream", expected, stream(block, ops.gated_conv_step), 1e-6)


def test_closed_gates_give_the_input_and_append_zeros(make_block):
    block = make_block(site="hidden", density=0.0, dilation=1).poison()
    frame, *rest = frame_of(block, 0)
    history = torch.randn(2, 10, 2)
    y, after = ops.gated_conv_step(frame, history, *rest, dilation=1)
    assert torch.equal(y, frame)
    assert torch.equal(after[:, :, 0], history[:, :, 1])
    assert torch.equal(after[:, :, 1], torch.zeros(2, 10))


def test_functional_step_leaves_the_history_alone_and_in_place_step_updates_it(make_block):
    block = make_block(dilation=2)
    frame, *rest = frame_of(block, 0)
    history = torch.randn(2, 10, 4)
    kept = history.clone()
    y, after = ops.gated_conv_step(frame, history, *rest, dilation=2)
    assert torch.equal(history, kept)
    assert torch.equal(ops.gated_conv_step_(frame, history, *rest, dilation=2), y)
    assert torch.equal(history, after)


def test_in_place_step_updates_a_non_contiguous_history(make_block):
    block = make_block(dilation=2)
    frame, *rest = frame_of(block, 0)
    history = torch.randn(4, 10, 2).permute(2, 1, 0)
    y, after = ops.gated_conv_step(frame, history, *rest, dilation=2)
    assert torch.equal(ops.gated_conv_step_(frame, history, *rest, dilation=2), y)
    assert torch.equal(history, after)


def test_in_place_step_refuses_a_history_that_shares_memory(make_block, needs_extension):
    block = make_block(frames=1, dilation=1)
    arguments = [block.args[0][..., 0], torch.zeros(1, 10, 2).expand(2, 10, 2)]
    arguments += [None, None, *block.args[3:]]
    with pytest.raises(RuntimeError, match="history must have memory of its own for every value"):
        ops.gated_conv_step_(*arguments, dilation=1)


def test_many_items_in_parallel_equal_one_by_one(make_block):
    block = make_block(batch=64, channels=64, hidden=96, frames=1, dilation=1)
    frame, *rest = frame_of(block, 0)
    history = torch.randn(64, 96, 2)
    y, after = ops.gated_conv_step(frame, history, *rest, dilation=1)
    for item in (0, 31, 63):
        gates = [gate[item : item + 1] for gate in rest[:2]]
        single = ops.gated_conv_step(frame[item : item + 1], history[item : item + 1], *gates, *rest[2:], dilation=1)
        assert torch.equal(single[0][0], y[item])
        assert torch.equal(single[1][0], after[item])


@pytest.mark.parametrize("step", [ops.gated_conv_step, ops.gated_conv_step_])
def test_a_gradient_is_refused(make_block, step):
    block = make_block(dilation=1)
    frame, *rest = frame_of(block, 0)
    history = torch.zeros(2, 10, 2)
    frame.requires_grad_()
    with pytest.raises(RuntimeError, match=r"gated_conv_step_?: no argument may require a gradient"):
        step(frame, history, *rest, dilation=1)
    with torch.no_grad():
        step(frame, history, *rest, dilation=1)
