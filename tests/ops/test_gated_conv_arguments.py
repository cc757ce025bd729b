from __future__ import annotations

import re

import pytest
import torch

from dyncp_kernels import ops
from dyncp_kernels.ops._checks import check_block, check_grad

# Mistake: changed arguments and options of a block with x [2, 6, 53], w_dw [10, 3] and w_out [6, 10], and the message.
MISTAKES = {
    "x dtype": (
        {"x": torch.zeros(2, 6, 53, dtype=torch.int64)},
        {},
        "x must be float32, float64, float16 or bfloat16 (got int64)",
    ),
    "x rank": ({"x": torch.zeros(6, 53)}, {}, "x must have shape (batch, channels, frames) (got shape [6, 53])"),
    "w_in dtype": (
        {"w_in": torch.zeros(10, 6, dtype=torch.float64)},
        {},
        "w_in must have the dtype of x, float32 (got float64)",
    ),
    "slope dtype": (
        {"slope_dw": torch.zeros(1, dtype=torch.float16)},
        {},
        "slope_dw must have the dtype of x, float32 (got float16)",
    ),
    "hidden gate dtype": (
        {"hidden_gate": torch.zeros(2, 10, 53, dtype=torch.uint8)},
        {},
        "hidden_gate must be bool or have the dtype of x, float32 (got uint8)",
    ),
    "out gate dtype": (
        {"out_gate": torch.zeros(2, 6, 53, dtype=torch.float64)},
        {},
        "out_gate must be bool or have the dtype of x, float32 (got float64)",
    ),
    "w_dw rank": ({"w_dw": torch.zeros(10, 1, 3)}, {}, "w_dw must have shape (hidden, taps) (got shape [10, 1, 3])"),
    "no taps": ({"w_dw": torch.zeros(10, 0)}, {}, "w_dw must have at least one row and one tap (got shape [10, 0])"),
    "w_out rank": (
        {"w_out": torch.zeros(6, 10, 1)},
        {},
        "w_out must have shape (out_channels, hidden) (got shape [6, 10, 1])",
    ),
    "w_out columns": (
        {"w_out": torch.zeros(6, 9)},
        {},
        "w_out must have a column for each of the 10 rows of w_dw (got shape [6, 9])",
    ),
    "w_in rows": (
        {"w_in": torch.zeros(9, 6)},
        {},
        "w_in must have shape (hidden, channels) = [10, 6] (got shape [9, 6])",
    ),
    "w_in columns": (
        {"w_in": torch.zeros(10, 7)},
        {},
        "w_in must have shape (hidden, channels) = [10, 6] (got shape [10, 7])",
    ),
    "w_in rank": (
        {"w_in": torch.zeros(10, 6, 1)},
        {},
        "w_in must have shape (hidden, channels) = [10, 6] (got shape [10, 6, 1])",
    ),
    "b_in without w_in": ({"w_in": None}, {}, "b_in must be None without w_in (got a tensor)"),
    "slope_in without w_in": ({"w_in": None, "b_in": None}, {}, "slope_in must be None without w_in (got a tensor)"),
    "hidden without w_in": (
        {"w_in": None, "b_in": None, "slope_in": None},
        {},
        "w_dw must have a row for each of the 6 channels of x without w_in (got 10)",
    ),
    "b_in shape": ({"b_in": torch.zeros(11)}, {}, "b_in must have shape [10] (got shape [11])"),
    "b_dw shape": ({"b_dw": torch.zeros(10, 1)}, {}, "b_dw must have shape [10] (got shape [10, 1])"),
    "b_out shape": ({"b_out": torch.zeros(10)}, {}, "b_out must have shape [6] (got shape [10])"),
    "slope_in size": ({"slope_in": torch.zeros(10)}, {}, "slope_in must have one element (got 10)"),
    "slope_dw size": ({"slope_dw": torch.zeros(0)}, {}, "slope_dw must have one element (got 0)"),
    "hidden gate rows": (
        {"hidden_gate": torch.ones(2, 6, 53, dtype=torch.bool)},
        {},
        "hidden_gate must have shape [2, 10, 53] or [2, 10, 1] (got shape [2, 6, 53])",
    ),
    "hidden gate batch": (
        {"hidden_gate": torch.ones(1, 10, 53, dtype=torch.bool)},
        {},
        "hidden_gate must have shape [2, 10, 53] or [2, 10, 1] (got shape [1, 10, 53])",
    ),
    "out gate frames": (
        {"out_gate": torch.ones(2, 6, 52, dtype=torch.bool)},
        {},
        "out_gate must have shape [2, 6, 53] or [2, 6, 1] (got shape [2, 6, 52])",
    ),
    "out gate rank": (
        {"out_gate": torch.ones(2, 6, dtype=torch.bool)},
        {},
        "out_gate must have shape [2, 6, 53] or [2, 6, 1] (got shape [2, 6])",
    ),
    "dilation": ({}, {"dilation": 0}, "dilation must be at least 1 (got 0)"),
    "far dilation": (
        {},
        {"dilation": 2**61},
        f"(taps - 1) * dilation must be at most 2^30 (got 3 taps and dilation {2**61})",
    ),
    "uneven centre": (
        {"w_dw": torch.zeros(10, 4)},
        {"causal": False},
        "a centred convolution needs an even (taps - 1) * dilation (got 4 taps and dilation 1)",
    ),
    "residual": (
        {"w_out": torch.zeros(5, 10), "b_out": None, "out_gate": None},
        {},
        "the residual needs as many rows of w_out as channels of x, 6 (got 5)",
    ),
}

STEP_MISTAKES = {
    "x rank": ({"x": torch.zeros(2, 6, 1)}, {}, "x must have shape (batch, channels) (got shape [2, 6, 1])"),
    "history length": (
        {"history": torch.zeros(2, 10, 3)},
        {},
        "history must have shape [2, 10, 2] (got shape [2, 10, 3])",
    ),
    "history rows": ({"history": torch.zeros(2, 9, 2)}, {}, "history must have shape [2, 10, 2] (got shape [2, 9, 2])"),
    "history rank": ({"history": torch.zeros(2, 20)}, {}, "history must have shape [2, 10, 2] (got shape [2, 20])"),
    "history dtype": (
        {"history": torch.zeros(2, 10, 2, dtype=torch.float64)},
        {},
        "history must have the dtype of x, float32 (got float64)",
    ),
    "hidden gate": (
        {"hidden_gate": torch.ones(2, 10, 1, dtype=torch.bool)},
        {},
        "hidden_gate must have shape [2, 10] (got shape [2, 10, 1])",
    ),
    "out gate": (
        {"out_gate": torch.ones(2, 7, dtype=torch.bool)},
        {},
        "out_gate must have shape [2, 6] (got shape [2, 7])",
    ),
    "w_in": ({"w_in": torch.zeros(9, 6)}, {}, "w_in must have shape (hidden, channels) = [10, 6] (got shape [9, 6])"),
    "dilation": ({}, {"dilation": -1}, "dilation must be at least 1 (got -1)"),
}


def exactly(op, message):
    return "^" + re.escape(f"{op}: {message}")


def step_tensors(make_block):
    tensors = dict(make_block(frames=1).tensors)
    for name in ("x", "hidden_gate", "out_gate"):
        tensors[name] = tensors[name][:, :, 0]
    x = tensors.pop("x")
    return {"x": x, "history": torch.zeros(2, 10, 2), **tensors}


def to_meta(tensors):
    return [None if tensor is None else tensor.to("meta") for tensor in tensors]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_has_its_own_message(make_block, mistake):
    changes, options, message = MISTAKES[mistake]
    arguments = list({**make_block().tensors, **changes}.values())
    with pytest.raises(RuntimeError, match=exactly("gated_conv", message)):
        ops.gated_conv(*arguments, **options)
    with pytest.raises(RuntimeError, match=exactly("gated_conv", message)):
        ops.gated_conv(*to_meta(arguments), **options)


@pytest.mark.parametrize("mistake", STEP_MISTAKES)
@pytest.mark.parametrize("op", ["gated_conv_step", "gated_conv_step_"])
def test_each_mistake_of_the_step_has_its_own_message(make_block, mistake, op):
    changes, options, message = STEP_MISTAKES[mistake]
    arguments = list({**step_tensors(make_block), **changes}.values())
    with pytest.raises(RuntimeError, match=exactly(op, message)):
        getattr(ops, op)(*arguments, **options)
    with pytest.raises(RuntimeError, match=exactly(op, message)):
        getattr(ops, op)(*to_meta(arguments), **options)


def test_the_messages_are_all_different():
    messages = [message.split(" (got")[0] for _, _, message in MISTAKES.values()]
    # Mistakes in one shape share their message up to what came.
    assert len(set(messages)) >= len(messages) - 6


@pytest.mark.parametrize("name", ["w_in", "b_dw", "w_out", "slope_in", "hidden_gate", "out_gate"])
def test_a_tensor_on_another_device_is_named(make_block, name):
    tensors = dict(make_block().tensors)
    tensors[name] = tensors[name].to("meta")
    message = exactly("gated_conv", f"{name} must be on the device of x, cpu (got meta)")
    with pytest.raises(RuntimeError, match=message):
        ops.gated_conv(*tensors.values())


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.zeros(2, 6, 52), "grad must have shape [2, 6, 53] (got shape [2, 6, 52])"),
        (torch.zeros(2, 6, 53, dtype=torch.float64), "grad must have the dtype of x, float32 (got float64)"),
    ],
)
def test_a_gradient_that_does_not_fit_the_output_is_refused(make_block, grad, message):
    block = make_block()
    with pytest.raises(RuntimeError, match=exactly("gated_conv_backward", message)):
        torch.ops.dyncp.gated_conv_backward(grad, *block.args)
    with pytest.raises(RuntimeError, match=exactly("gated_conv_backward", message)):
        check_grad("gated_conv_backward", grad, block.tensors["x"], block.tensors["w_out"])


def test_correct_arguments_pass_the_python_checks(make_block):
    block = make_block()
    check_block("gated_conv", *block.args, dilation=1, causal=False, residual=True)
