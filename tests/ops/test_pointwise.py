from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyncp_kernels import ops

RATIOS = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 2e-2}
ACTIVATIONS = ("none", "relu", "sigmoid")


def tensors(batch=2, channels=19, out_channels=23, frames=101, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, channels, frames), (out_channels, channels), (out_channels,)
    x, w, b = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, w / max(channels, 1) ** 0.5, b


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_agrees_with_the_reference(data, assert_close, poisoned_empty, each_instruction_set):
    draw = data.draw
    dtype = draw(st.sampled_from(list(RATIOS)))
    frames = draw(st.sampled_from((0, 1, 15, 16, 17, 47, 48, 49, 63, 64, 65, 100, 145)))
    x, w, b = tensors(draw(st.integers(0, 3)), draw(st.integers(1, 70)), draw(st.integers(0, 70)), frames, dtype)
    activation = draw(st.sampled_from(ACTIVATIONS))
    b = draw(st.sampled_from((b, None)))
    expected = ops.pointwise_reference(x, w, b, activation)
    assert_close("y", expected, ops.pointwise(x, w, b, activation), RATIOS[dtype])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_sigmoid_is_exact_to_a_few_roundings_everywhere(each_instruction_set, dtype, tolerance):
    x = torch.cat([torch.linspace(-120, 120, 20001), torch.linspace(-1, 1, 20001)]).to(dtype)
    one = torch.ones(1, 1, dtype=dtype)
    y = ops.pointwise(x[None, None], one, None, "sigmoid")[0, 0]
    expected = torch.sigmoid(x.double())
    assert (y - expected).abs().max() < tolerance
    inside = x.abs() < 80
    assert ((y - expected).abs() / expected)[inside].max() < 4 * tolerance


def test_sigmoid_of_infinities_and_nan(each_instruction_set):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0])
    y = ops.pointwise(x[None, None], torch.ones(1, 1), None, "sigmoid")[0, 0]
    assert y[0] == 1
    assert 0 <= y[1] < 1e-37
    assert torch.isnan(y[2])
    assert y[3] == 0.5


def test_non_contiguous_tensors_give_the_same():
    x, w, b = tensors()
    expected = ops.pointwise(x, w, b, "relu")
    x = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    w = w.t().contiguous().t()
    b = b.repeat_interleave(2)[::2]
    assert not any(tensor.is_contiguous() for tensor in (x, w, b))
    assert torch.equal(ops.pointwise(x, w, b, "relu"), expected)


def test_the_result_does_not_depend_on_the_number_of_threads(each_instruction_set, with_threads):
    x, w, b = tensors(3, 100, 257, 500)
    expected, result = with_threads((1, 3), lambda: ops.pointwise(x, w, b, "sigmoid"))
    assert torch.equal(result, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient(activation):
    arguments = [tensor.requires_grad_() for tensor in tensors(2, 3, 4, 5, torch.float64)]
    assert torch.autograd.gradcheck(lambda *a: ops.pointwise(*a, activation), arguments)


def test_opcheck_and_autocast():
    x, w, b = tensors()
    torch.library.opcheck(torch.ops.dyncp.pointwise.default, (x, w, b, "sigmoid"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.pointwise(x, w, b).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x must have shape \(batch, channels, frames\) \(got shape \[2, 3\]\)"),
        ({"w": torch.zeros(23, 5)}, r"w must have shape \(out_channels, 19\) \(got shape \[23, 5\]\)"),
        ({"b": torch.zeros(5)}, r"b must have shape \[23\] \(got shape \[5\]\)"),
        ({"w": torch.zeros(23, 19).double()}, r"w must have the dtype of x, float32 \(got float64\)"),
        ({"x": torch.zeros(2, 19, 4, dtype=torch.int32)}, r"x must be float32, .* \(got int32\)"),
        ({"activation": "tanh"}, r"activation must be one of none, relu, sigmoid \(got tanh\)"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_refused(change, message, device):
    arguments = dict(zip(("x", "w", "b", "activation"), (*tensors(), "none"))) | change
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with pytest.raises(RuntimeError, match="pointwise: " + message):
        ops.pointwise(**moved)
