"""The block ops of a GPU back-end against the PyTorch reference."""

from __future__ import annotations

import importlib

import pytest
import torch

from dyncp_kernels.ops.reference import gated_conv_reference, gated_conv_step_reference

NAMES = ("hidden_gate", "out_gate", "w_in", "b_in", "w_dw", "b_dw", "w_out", "b_out", "slope_in", "slope_dw")
# Against a reference that rounds what it keeps between its steps, too.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

reference_backward = importlib.import_module("dyncp_kernels.ops.gated_conv")._run_reference_backward


def assert_close(name, expected, actual, tolerance):
    """Relative error of the whole tensor; NaN never passes."""
    assert expected.shape == actual.shape, name
    assert expected.dtype == actual.dtype, name
    error = (expected.double().cpu() - actual.double().cpu()).norm()
    assert error <= tolerance * expected.double().cpu().norm() + 1e-9, f"{name}: {error}"


def block(
    engine,
    dtype=torch.float32,
    *,
    channels=20,
    hidden=40,
    frames=70,
    batch=2,
    taps=3,
    hidden_gate="frame",
    out_gate="frame",
    kind="bool",
    has_w_in=True,
    prelu=True,
    bias=True,
    density=0.4,
):
    """Input and the ten tensors that follow it."""
    hidden = hidden if has_w_in else channels

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(*shape)).to(dtype).to(engine.device)

    def gate(how, rows):
        if how is None:
            return None
        kept = torch.rand(batch, rows, frames if how == "frame" else 1) < density
        # One item without any, one with all channels at some frames.
        kept[0, :, kept.shape[2] // 2] = False
        kept[-1, :, kept.shape[2] // 3] = True
        gates = kept if kind == "bool" else (kept * (0.25 + torch.rand(kept.shape))).to(dtype)
        return gates.to(engine.device)

    tensors = {
        "hidden_gate": gate(hidden_gate, hidden),
        "out_gate": gate(out_gate, channels),
        "w_in": draw(hidden, channels, scale=0.3) if has_w_in else None,
        "b_in": draw(hidden) if has_w_in and bias else None,
        "w_dw": draw(hidden, taps),
        "b_dw": draw(hidden) if bias else None,
        "w_out": draw(channels, hidden, scale=0.3),
        "b_out": draw(channels) if bias else None,
        "slope_in": torch.full((1,), 0.25, dtype=dtype, device=engine.device) if has_w_in and prelu else None,
        "slope_dw": torch.full((1,), 0.1, dtype=dtype, device=engine.device) if prelu else None,
    }
    return draw(batch, channels, frames), [tensors[name] for name in NAMES]


CASES = {
    "both sites, a gate for each frame": {},
    "hidden site, a gate for each item": {"hidden_gate": "item", "out_gate": None},
    "output site, a gate for each item": {"hidden_gate": None, "out_gate": "item", "prelu": False},
    "no gates": {"hidden_gate": None, "out_gate": None},
    "surrogate gates": {"kind": "float", "out_gate": "item"},
    "no expansion": {"has_w_in": False},
    "no biases, more frames than a tile": {"bias": False, "frames": 150, "batch": 1},
    "fewer frames than taps reach": {"frames": 3},
    "one tap": {"taps": 1, "frames": 20},
    "odd sizes": {"channels": 17, "hidden": 33, "frames": 61},
}


# Triton keeps the hidden activations of this width on chip for 16-bit types and in memory for float32.
on_chip_and_in_memory = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@on_chip_and_in_memory
@pytest.mark.parametrize("case", CASES)
def test_forward_equals_reference(engine, case, dtype):
    x, tensors = block(engine, dtype, **CASES[case])
    expected = gated_conv_reference(x, *tensors, dilation=2)
    assert_close(case, expected, engine.gated_conv(x, *tensors, dilation=2), TOLERANCE[x.dtype])


def test_forward_of_float16(engine):
    x, tensors = block(engine, torch.float16)
    assert_close("y", gated_conv_reference(x, *tensors), engine.gated_conv(x, *tensors), TOLERANCE[x.dtype])


@on_chip_and_in_memory
@pytest.mark.parametrize(
    ("dilation", "causal", "residual"), [(1, True, False), (8, True, True), (3, False, True), (30, True, True)]
)
def test_dilation_padding_and_residual(engine, dtype, dilation, causal, residual):
    options = {"dilation": dilation, "causal": causal, "residual": residual}
    x, tensors = block(engine, dtype, batch=1)
    expected = gated_conv_reference(x, *tensors, **options)
    assert_close("y", expected, engine.gated_conv(x, *tensors, **options), TOLERANCE[x.dtype])


@on_chip_and_in_memory
def test_taps_that_all_miss_the_frame_itself(engine, dtype):
    x, tensors = block(engine, dtype, taps=2, batch=1)
    expected = gated_conv_reference(x, *tensors, dilation=3, causal=False)
    assert_close("y", expected, engine.gated_conv(x, *tensors, dilation=3, causal=False), TOLERANCE[dtype])


@on_chip_and_in_memory
@pytest.mark.parametrize("how", ["frame", "item"])
def test_nothing_kept_leaves_x_unchanged(engine, dtype, how):
    x, tensors = block(engine, dtype, hidden_gate=how, out_gate=None)
    tensors[0] = torch.zeros_like(tensors[0])
    assert torch.equal(engine.gated_conv(x, *tensors), x)
    tensors[0], tensors[1] = None, x.new_zeros(x.shape, dtype=torch.bool)
    assert torch.equal(engine.gated_conv(x, *tensors), x)


@on_chip_and_in_memory
@pytest.mark.parametrize("how", ["frame", "item"])
@pytest.mark.parametrize("residual", [True, False])
def test_outputs_that_are_closed_throughout_are_written(engine, dtype, how, residual, poisoned_empty):
    x, tensors = block(engine, dtype, hidden_gate=None, out_gate=how)
    tensors[1][:, 3] = False
    y = engine.gated_conv(x, *tensors, residual=residual)
    assert torch.equal(y[:, 3], x[:, 3] if residual else torch.zeros_like(x[:, 3]))
    assert_close("y", gated_conv_reference(x, *tensors, residual=residual), y, TOLERANCE[x.dtype])


def _poison(tensors, hidden_rows, out_rows):
    """NaN in everything that belongs to the given rows."""
    poisoned = [tensor if tensor is None else tensor.clone() for tensor in tensors]
    for index in (2, 3, 4, 5):
        poisoned[index][hidden_rows] = float("nan")
    poisoned[6][:, hidden_rows] = float("nan")
    poisoned[6][out_rows] = float("nan")
    poisoned[7][out_rows] = float("nan")
    return poisoned


@on_chip_and_in_memory
@pytest.mark.parametrize("how", ["frame", "item"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_pruned_weights_are_never_read(engine, dtype, how, kind):
    x, tensors = block(engine, dtype, batch=1, hidden_gate=how, out_gate=how, kind=kind, density=0.6)
    hidden_rows, out_rows = [0, 5, 17, 39], [1, 19]
    tensors[0][:, hidden_rows] = 0
    tensors[1][:, out_rows] = 0
    expected = gated_conv_reference(x, *tensors)
    actual = engine.gated_conv(x, *_poison(tensors, hidden_rows, out_rows))
    assert_close("y", expected, actual, TOLERANCE[x.dtype])


@on_chip_and_in_memory
def test_items_of_a_batch_use_their_own_gates(engine, dtype):
    x, tensors = block(engine, dtype, batch=3, frames=40, hidden_gate="item", out_gate="item")
    together = engine.gated_conv(x, *tensors)
    for item in range(3):
        alone = [tensor[item : item + 1] if index < 2 else tensor for index, tensor in enumerate(tensors)]
        assert torch.equal(together[item : item + 1], engine.gated_conv(x[item : item + 1], *alone))


@on_chip_and_in_memory
def test_pruned_values_do_not_leak_into_other_frames(engine, dtype):
    x, tensors = block(engine, dtype, batch=1, out_gate=None)
    tensors[0][:, :, 30] = False
    poisoned = x.clone()
    poisoned[:, :, 30] = float("nan")
    clean = engine.gated_conv(x, *tensors)
    dirty = engine.gated_conv(poisoned, *tensors)
    others = [frame for frame in range(x.shape[2]) if frame != 30]
    assert torch.equal(dirty[:, :, others], clean[:, :, others])


@on_chip_and_in_memory
def test_strided_arguments(engine, dtype):
    x, tensors = block(engine, dtype, batch=2)
    expected = gated_conv_reference(x, *tensors)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    tensors[0] = tensors[0].transpose(1, 2).contiguous().transpose(1, 2)
    tensors[6] = tensors[6].t().contiguous().t()
    assert_close("y", expected, engine.gated_conv(strided, *tensors), TOLERANCE[x.dtype])


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("odd sizes", "one tap")])
def test_gradients_equal_reference(engine, case):
    x, tensors = block(engine, **CASES[case])
    grad = torch.randn_like(x)
    expected = reference_backward(grad, x, *tensors, dilation=2)
    actual = engine.gated_conv_backward(grad, x, *tensors, dilation=2)
    for name, want, have in zip(("x", *NAMES), expected, actual):
        assert_close(f"{case}: {name}", want, have, 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_16_bit_types(engine, dtype):
    x, tensors = block(engine, dtype, kind="float", frames=40)
    grad = torch.randn_like(x)
    expected = reference_backward(grad, x, *tensors)
    actual = engine.gated_conv_backward(grad, x, *tensors)
    for name, want, have in zip(("x", *NAMES), expected, actual):
        assert_close(name, want, have, 2 * TOLERANCE[dtype])


def test_gradients_never_read_pruned_weights(engine):
    x, tensors = block(engine, batch=1, density=0.6)
    hidden_rows, out_rows = [0, 5, 17], [1, 19]
    tensors[0][:, hidden_rows] = False
    tensors[1][:, out_rows] = False
    grad = torch.randn_like(x)
    expected = reference_backward(grad, x, *tensors)
    actual = engine.gated_conv_backward(grad, x, *_poison(tensors, hidden_rows, out_rows))
    for name, want, have in zip(("x", *NAMES), expected, actual):
        assert_close(name, want, have, 2e-5)


def test_unwanted_gradients_are_empty(engine):
    x, tensors = block(engine, frames=20)
    results = engine.gated_conv_backward(torch.randn_like(x), x, *tensors, wanted=1 | 1 << 3)
    assert [result.numel() > 0 for result in results] == [index in (0, 3) for index in range(11)]


def test_results_are_bitwise_reproducible(engine):
    x, tensors = block(engine)
    grad = torch.randn_like(x)
    assert torch.equal(engine.gated_conv(x, *tensors), engine.gated_conv(x, *tensors))
    first, second = (engine.gated_conv_backward(grad, x, *tensors) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


EMPTY = {"no items": (0, 5, 7, 5), "no frames": (2, 5, 0, 5), "no input channels": (2, 0, 7, 5)}
EMPTY["no output channels"] = (2, 5, 7, 0)


@pytest.mark.parametrize("case", EMPTY)
def test_empty_sizes_give_empty_or_zero_results(engine, case):
    batch, channels, frames, out_channels = EMPTY[case]

    def draw(*shape):
        return torch.randn(*shape).to(engine.device)

    x, grad = draw(batch, channels, frames), draw(batch, out_channels, frames)
    tensors = [draw(batch, 9, frames) > 0, None, draw(9, channels), draw(9), draw(9, 3), draw(9)]
    tensors += [draw(out_channels, 9), draw(out_channels), None, None]
    expected = gated_conv_reference(x, *tensors, residual=False)
    assert_close("y", expected, engine.gated_conv(x, *tensors, residual=False), TOLERANCE[x.dtype])
    gradients = reference_backward(grad, x, *tensors, residual=False)
    actual = engine.gated_conv_backward(grad, x, *tensors, residual=False)
    for name, want, have in zip(("x", *NAMES), gradients, actual):
        assert_close(name, want, have, 2e-5)


@on_chip_and_in_memory
def test_frames_and_steps_of_size_zero_or_one(engine, dtype):
    x, tensors = block(engine, dtype, frames=1, batch=2)
    expected = gated_conv_reference(x, *tensors, dilation=2)
    assert_close("y", expected, engine.gated_conv(x, *tensors, dilation=2), TOLERANCE[x.dtype])
    none = [tensor[:0, :, 0] if index < 2 else tensor for index, tensor in enumerate(tensors)]
    y, history = engine.gated_conv_step(x[:0, :, 0], x.new_zeros(0, 40, 4), *none, dilation=2)
    assert y.shape == (0, 20)
    assert history.shape == (0, 40, 4)


def test_a_step_without_output_channels_still_keeps_its_history(engine, poisoned_empty):
    x, tensors = step_of(engine)
    tensors[1], tensors[6], tensors[7] = None, tensors[6][:0], tensors[7][:0]
    history = torch.randn(x.shape[0], 40, 4).to(x)
    _, expected = gated_conv_step_reference(x, history, *tensors, dilation=2, residual=False)
    y, updated = engine.gated_conv_step(x, history, *tensors, dilation=2, residual=False)
    assert y.shape == (x.shape[0], 0)
    assert_close("history", expected, updated, TOLERANCE[x.dtype])


def test_more_channels_than_one_kernel_takes(engine):
    """So many output channels that hidden activations go through memory."""
    x, tensors = block(engine, channels=272, hidden=24, frames=40, batch=1)
    expected = gated_conv_reference(x, *tensors, dilation=2)
    assert_close("y", expected, engine.gated_conv(x, *tensors, dilation=2), TOLERANCE[x.dtype])


STEP_CASES = {
    "one stream": {"batch": 1},
    "five streams with gates of their own": {"batch": 5},
    "seventeen streams with gates of their own": {"batch": 17},
    "many streams without gates": {"batch": 67, "hidden_gate": None, "out_gate": None},
    "more gated streams than run alone": {"batch": 1030, "channels": 16, "hidden": 16},
    "surrogate gates": {"batch": 3, "kind": "float"},
    "surrogate gates of seventeen streams": {"batch": 17, "kind": "float"},
    "no expansion": {"batch": 3, "has_w_in": False},
    "no expansion, seventeen streams": {"batch": 17, "has_w_in": False, "prelu": False},
    "one tap": {"batch": 2, "taps": 1},
    "one tap, ten streams without biases": {"batch": 10, "taps": 1, "bias": False},
    "more outputs than a program of one launch holds": {"batch": 2, "channels": 520, "hidden": 24},
    "bfloat16": {"batch": 3, "dtype": torch.bfloat16},
    "bfloat16, ten streams": {"batch": 10, "dtype": torch.bfloat16},
    "float16, seventeen streams": {"batch": 17, "dtype": torch.float16},
    "more hidden channels than are listed at a time": {"batch": 3, "hidden": 300},
    "more output channels than one program has": {"batch": 2, "channels": 520, "hidden": 24},
    "a past of 120 frames": {"batch": 3, "dilation": 60},
    "a past of 120 frames, seventeen streams": {"batch": 17, "dilation": 60},
}


def step_of(engine, **settings):
    """Arguments of a step: a frame, and the ten tensors after the history."""
    x, tensors = block(engine, frames=1, **settings)
    return x[:, :, 0], [gate if gate is None or index > 1 else gate[:, :, 0] for index, gate in enumerate(tensors)]


@pytest.mark.parametrize("case", STEP_CASES)
def test_step_equals_reference(engine, case):
    settings = dict(STEP_CASES[case])
    dilation = settings.pop("dilation", 2)
    x, tensors = step_of(engine, **settings)
    history = torch.randn(x.shape[0], tensors[4].shape[0], (tensors[4].shape[1] - 1) * dilation).to(x)
    expected_y, expected_history = gated_conv_step_reference(x, history, *tensors, dilation=dilation)
    before = history.clone()
    y, updated = engine.gated_conv_step(x, history, *tensors, dilation=dilation)
    assert torch.equal(history, before)
    assert_close("y", expected_y, y, TOLERANCE[x.dtype])
    assert_close("history", expected_history, updated, TOLERANCE[x.dtype])
    y = engine.gated_conv_step_(x, history, *tensors, dilation=dilation)
    assert_close("y in place", expected_y, y, TOLERANCE[x.dtype])
    assert torch.equal(history, updated)


def test_step_in_place_of_a_strided_history(engine):
    x, tensors = step_of(engine, batch=3)
    history = torch.randn(3, 4, 40).to(x).transpose(1, 2)
    y, updated = gated_conv_step_reference(x, history, *tensors, dilation=2)
    assert_close("y", y, engine.gated_conv_step_(x, history, *tensors, dilation=2), TOLERANCE[x.dtype])
    assert_close("history", updated, history, TOLERANCE[x.dtype])


@pytest.mark.parametrize("streams", [5, 17])
def test_step_of_strided_arguments(engine, streams):
    x, tensors = step_of(engine, batch=streams)
    history = torch.randn(streams, 40, 4).to(x)
    expected = gated_conv_step_reference(x, history, *tensors, dilation=2)
    for index in (0, 1, 6):
        tensors[index] = tensors[index].t().contiguous().t()
    strided = history.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    actual = engine.gated_conv_step(x.t().contiguous().t(), strided, *tensors, dilation=2)
    for name, want, have in zip(("y", "history"), expected, actual):
        assert_close(name, want, have, TOLERANCE[x.dtype])


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_step_of_a_stream_ignores_what_is_closed_for_it_alone(engine, layout, kind):
    """Also the weights that other streams need."""
    x, tensors = step_of(engine, batch=17, kind=kind)
    if layout == "columns":
        tensors[6] = tensors[6].t().contiguous().t()
    history = torch.randn(17, 40, 2).to(x)
    clean = engine.gated_conv_step(x, history, *tensors)
    for stream in (0, 6, 16):
        closed = [(gate[stream] == 0).nonzero()[:, 0].tolist() for gate in tensors[:2]]
        poisoned = [*tensors[:2], *_poison(tensors, *closed)[2:]]
        for want, have in zip(clean, engine.gated_conv_step(x, history, *poisoned)):
            assert torch.equal(want[stream], have[stream])


def test_streams_of_a_step_do_not_touch_each_other(engine):
    x, tensors = step_of(engine, batch=17)
    history = torch.randn(17, 40, 2).to(x)
    clean = engine.gated_conv_step(x, history, *tensors)
    x[3], history[3] = float("nan"), float("nan")
    others = [stream for stream in range(17) if stream != 3]
    for want, have in zip(clean, engine.gated_conv_step(x, history, *tensors)):
        assert torch.equal(want[others], have[others])


def test_step_never_reads_pruned_weights(engine):
    x, tensors = block(engine, frames=1, batch=1, density=0.6)
    hidden_rows, out_rows = [0, 5, 17], [1, 19]
    tensors[0][:, hidden_rows] = False
    tensors[1][:, out_rows] = False
    x, gates = x[:, :, 0], [gate[:, :, 0] for gate in tensors[:2]]
    history = torch.randn(1, 40, 2).to(x)
    expected = gated_conv_step_reference(x, history, *gates, *tensors[2:])
    actual = engine.gated_conv_step(x, history, *gates, *_poison(tensors, hidden_rows, out_rows)[2:])
    for name, want, have in zip(("y", "history"), expected, actual):
        assert_close(name, want, have, TOLERANCE[x.dtype])


def test_steps_give_the_frames_of_the_whole(engine):
    x, tensors = block(engine, frames=6)
    whole = engine.gated_conv(x, *tensors, dilation=2)
    history = x.new_zeros(2, 40, 4)
    for frame in range(6):
        gates = [gate[:, :, frame] for gate in tensors[:2]]
        y, history = engine.gated_conv_step(x[:, :, frame], history, *gates, *tensors[2:], dilation=2)
        assert_close(f"frame {frame}", whole[:, :, frame], y, TOLERANCE[x.dtype])
