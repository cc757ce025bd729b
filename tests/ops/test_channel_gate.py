from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyncp_kernels import ops
from dyncp_kernels.nn.gate import ChannelGate
from dyncp_kernels.ops.pooling import POOLINGS, pool_over_time

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def tensors(batch=2, channels=20, width=8, gates=33, frames=101, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, channels, frames), (width, channels), (width,), (gates, width), (gates,)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    values[1] /= max(channels, 1) ** 0.5
    return values


def certain(arguments, shift, **options):
    """The decisions in float64, and where they are not within rounding distance of 0."""
    wide = [None if value is None else value.double() for value in arguments]
    low = ops.channel_gate_reference(*wide, shift=shift - 1e-4, **options)
    high = ops.channel_gate_reference(*wide, shift=shift + 1e-4, **options)
    return high, low == high


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_agrees_with_the_reference(data, poisoned_empty, each_instruction_set):
    draw = data.draw
    dtype = draw(st.sampled_from(DTYPES))
    frames = draw(st.sampled_from((0, 1, 2, 15, 16, 17, 47, 48, 49, 100, 145)))
    sizes = draw(st.integers(0, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 20)), draw(st.integers(0, 40))
    arguments = tensors(*sizes, frames, dtype)
    for bias in (2, 4):
        arguments[bias] = draw(st.sampled_from((arguments[bias], None)))
    options = {"pooling": draw(st.sampled_from(POOLINGS)), "window": draw(st.sampled_from((1, 2, 7, 60)))}
    shift = draw(st.sampled_from((-0.7, 0.0, 0.4)))
    expected, sure = certain(arguments, shift, **options)
    got = ops.channel_gate(*arguments, shift=shift, **options)
    assert got.dtype == torch.bool
    assert got.shape == expected.shape
    assert torch.equal(got[sure], expected[sure])


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("window", [1, 4, 5])
def test_pooling_is_what_its_definition_says(assert_close, kind, window):
    x = torch.randn(3, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frames = []
    for t in range(30):
        left = {"window": window - 1, "centred": window // 2}.get(kind, t)
        right = {"centred": window - 1 - window // 2, "global": 30}.get(kind, 0)
        frames.append(x[:, max(0, t - left) : t + right + 1].mean(1))
        if kind == "exponential":
            previous = frames[t - 1] if t else x[:, 0]
            frames[t] = previous + 2 / (window + 1) * (x[:, t] - previous)
    assert_close("pooled", torch.stack(frames, 1), pool_over_time(x, kind, window), 1e-13)


@pytest.mark.parametrize("per", ["frame", "utterance"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_decides_as_the_trainable_gate_does(kind, per):
    torch.manual_seed(3)
    gate = ChannelGate(20, 33, pooling=kind, window=5, per=per)
    torch.nn.init.normal_(gate.expand.bias)
    x = torch.randn(2, 20, 70)
    with torch.no_grad():
        scores = gate.scores(x)
    sure = (scores + 0.1).abs() > 1e-5
    decided = gate.decide(x, 0.1)
    assert decided.shape == scores.shape
    assert torch.equal(decided[sure], (scores + 0.1 > 0)[sure])


@pytest.mark.parametrize("kind", POOLINGS)
def test_the_result_does_not_depend_on_the_number_of_threads(each_instruction_set, with_threads, kind):
    arguments = tensors(5, 128, 13, 256, 777)
    expected, result = with_threads((1, 3), lambda: ops.channel_gate(*arguments, pooling=kind))
    assert torch.equal(result, expected)


def test_a_score_of_exactly_zero_is_pruned(each_instruction_set):
    x, w_reduce, _, w_expand, _ = tensors()
    assert not ops.channel_gate(x, w_reduce, None, torch.zeros_like(w_expand), None).any()


def test_non_contiguous_tensors_give_the_same():
    arguments = tensors()
    expected = ops.channel_gate(*arguments)
    x, w_reduce, b_reduce, w_expand, b_expand = arguments
    x = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    w_reduce, w_expand = w_reduce.t().contiguous().t(), w_expand.t().contiguous().t()
    b_reduce, b_expand = (bias.repeat_interleave(2)[::2] for bias in (b_reduce, b_expand))
    assert torch.equal(ops.channel_gate(x, w_reduce, b_reduce, w_expand, b_expand), expected)


def test_opcheck():
    torch.library.opcheck(torch.ops.dyncp.channel_gate.default, tuple(tensors()), {"pooling": "window"})
    torch.library.opcheck(torch.ops.dyncp.channel_gate.default, tuple(tensors()), {"pooling": "global"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x must have shape \(batch, channels, frames\) \(got shape \[2, 3\]\)"),
        ({"w_reduce": torch.zeros(8, 5)}, r"w_reduce must have shape \(width, 20\) \(got shape \[8, 5\]\)"),
        ({"w_expand": torch.zeros(33, 5)}, r"w_expand must have shape \(gates, 8\) \(got shape \[33, 5\]\)"),
        ({"b_reduce": torch.zeros(5)}, r"b_reduce must have shape \[8\] \(got shape \[5\]\)"),
        ({"b_expand": torch.zeros(5)}, r"b_expand must have shape \[33\] \(got shape \[5\]\)"),
        ({"w_expand": torch.zeros(33, 8).double()}, r"w_expand must have the dtype of x, float32 \(got float64\)"),
        ({"window": 0}, r"window must be at least 1 frame \(got 0\)"),
        ({"pooling": "max"}, r"pooling must be one of .*global \(got max\)"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_refused(change, message, device):
    names = ("x", "w_reduce", "b_reduce", "w_expand", "b_expand")
    arguments = dict(zip(names, tensors())) | change
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with pytest.raises(RuntimeError, match="channel_gate: " + message):
        ops.channel_gate(**moved)


@pytest.mark.parametrize("pooling", ["window", "centred"])
def test_a_window_longer_than_the_clip_has_all_its_frames(needs_extension, pooling):
    arguments = tensors(frames=20)
    got = ops.channel_gate(*arguments, pooling=pooling, window=2**62)
    expected, sure = certain(arguments, 0.0, pooling=pooling, window=100)
    assert torch.equal(got[sure], expected[sure])
