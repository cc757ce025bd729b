from __future__ import annotations

import pytest
import torch

from dyncp_kernels import ops

GATED = {
    "plain": {"site": "none"},
    "bool gates": {},
    "float gates": {"gates": "float", "density": 0.6},
    "float gates, constant": {"gates": "float", "constant": True, "density": 0.6},
    "hidden float gate": {"gates": "float", "site": "hidden", "density": 0.6},
    "output float gate": {"gates": "float", "site": "output", "density": 0.6},
    "constant bool gates": {"constant": True},
    "relu": {"prelu": False},
    "no biases": {"biases": False},
    "no expansion": {"expand": False, "gates": "float"},
    "no expansion, no residual": {"expand": False, "residual": False, "out_channels": 3},
    "no residual": {"residual": False, "out_channels": 3, "gates": "float"},
    "centred": {"causal": False, "gates": "float"},
    "centred, long reach": {"causal": False, "dilation": 7, "taps": 5},
    "dilated": {"dilation": 4, "gates": "float"},
    "one tap": {"taps": 1},
    "one frame": {"frames": 1, "gates": "float"},
}


def leaves(block):
    """The block's arguments as leaves of a graph, and those of them that are differentiable."""
    arguments = [
        value.detach().clone().requires_grad_() if value is not None and value.is_floating_point() else value
        for value in block.args
    ]
    return arguments, [value for value in arguments if value is not None and value.requires_grad]


@pytest.mark.parametrize("case", GATED)
def test_float64_gradcheck(make_block, case):
    options = {"frames": 7, "channels": 4, "hidden": 5, **GATED[case]}
    block = make_block(dtype=torch.float64, **options)
    gate = block.tensors["hidden_gate"]
    if gate is not None and gate.is_floating_point():
        # Opening the first channel of a frame is a step of y, which has no numerical gradient.
        gate[:, 0] = 0.8
    arguments, _ = leaves(block)
    assert torch.autograd.gradcheck(lambda *a: ops.gated_conv(*a, **block.options), arguments, fast_mode=False)


@pytest.mark.parametrize("case", GATED)
def test_agrees_with_autograd_through_the_reference(
    make_block, assert_close, poisoned_empty, each_instruction_set, case
):
    block = make_block(**{"channels": 18, "hidden": 37, "frames": 101, **GATED[case]})
    ours, our_leaves = leaves(block)
    theirs, their_leaves = leaves(block)
    y = ops.gated_conv(*ours, **block.options)
    expected = ops.gated_conv_reference(*theirs, **block.options)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    pairs = zip(torch.autograd.grad(expected, their_leaves, grad), torch.autograd.grad(y, our_leaves, grad))
    for i, (reference, result) in enumerate(pairs):
        assert_close(f"gradient {i}", reference, result, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_gradients_are_rounded_float32_gradients(make_block, assert_close, dtype):
    block = make_block(gates="float", dtype=dtype)
    ours, our_leaves = leaves(block)
    wide = [None if value is None else value.detach().float().requires_grad_() for value in block.args]
    y = ops.gated_conv(*ours)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    results = torch.autograd.grad(y, our_leaves, grad)
    expected = torch.autograd.grad(ops.gated_conv(*wide), [w for w in wide if w is not None], grad.float())
    for i, (reference, result) in enumerate(zip(expected, results)):
        assert result.dtype == dtype
        assert_close(f"gradient {i}", reference, result, 1e-2)


@pytest.mark.parametrize("site", ["hidden", "output", "both"])
@pytest.mark.parametrize("constant", [True, False])
def test_pruned_weights_are_not_read_and_get_exact_zeros(
    make_block, poisoned_empty, each_instruction_set, site, constant
):
    # A constant gate prunes the same channels in both items; a per-frame gate is closed for some channels throughout.
    block = make_block(batch=2, site=site, constant=constant, density=0.9)
    for name in ("hidden_gate", "out_gate"):
        if block.tensors[name] is not None:
            block.tensors[name][:, 1:4] = False
    block.poison()
    ours, our_leaves = leaves(block)
    ops.gated_conv(*ours).sum().backward()
    named = dict(zip(block.tensors, ours))
    assert not any(torch.isnan(leaf.grad).any() for leaf in our_leaves)
    rows = []
    if site in ("hidden", "both"):
        rows += ["w_in", "b_in", "w_dw", "b_dw"]
        assert torch.equal(named["w_out"].grad[:, 1:4], torch.zeros_like(named["w_out"][:, 1:4]))
    if site in ("output", "both"):
        rows += ["w_out", "b_out"]
    for name in rows:
        assert torch.equal(named[name].grad[1:4], torch.zeros_like(named[name][1:4])), name


def test_floating_gates_get_the_gradient_of_the_formula_where_they_are_closed(make_block):
    block = make_block(gates="float", density=0.5, dtype=torch.float64)
    arguments, _ = leaves(block)
    ops.gated_conv(*arguments).pow(2).sum().backward()
    for gate in arguments[1:3]:
        assert (gate.grad[gate == 0] != 0).float().mean() > 0.9


def test_only_wanted_gradients_are_computed(make_block):
    block = make_block(gates="float")
    grads = torch.ops.dyncp.gated_conv_backward(torch.ones(2, 6, 53), *block.args, wanted=0b1001)
    assert [g.numel() > 0 for g in grads] == [True, False, False, True] + [False] * 7
    arguments = [value.clone() if value is not None else None for value in block.args]
    arguments[7].requires_grad_()
    ops.gated_conv(*arguments).sum().backward()
    assert arguments[7].grad is not None
    assert arguments[0].grad is None


@pytest.mark.parametrize("case", ["bool gates", "float gates", "centred"])
def test_gradients_do_not_depend_on_the_number_of_threads(make_block, case, with_threads):
    block = make_block(3, 48, 64, 300, **GATED[case])
    grad = torch.randn(3, 48, 300)
    results = with_threads((1, 2, 3), lambda: torch.ops.dyncp.gated_conv_backward(grad, *block.args, **block.options))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_second_derivatives_are_refused_rather_than_zero(make_block):
    block = make_block()
    arguments, wanted = leaves(block)
    y = ops.gated_conv(*arguments, **block.options)
    with pytest.raises(RuntimeError, match="gated_conv: create_graph must be False, because the op has no second"):
        torch.autograd.grad(y.square().sum(), wanted, create_graph=True)


def test_forward_mode_derivatives_are_refused_rather_than_zero(make_block):
    block = make_block()
    x, *others = block.args

    def run(x):
        return ops.gated_conv(x, *others, **block.options)

    with pytest.raises(RuntimeError, match="gated_conv: no argument may have a tangent"):
        torch.func.jvp(run, (x,), (torch.ones_like(x),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="gated_conv: no argument may have a tangent"):
            run(dual)
        with pytest.raises(RuntimeError, match="pointwise: no argument may have a tangent"):
            ops.pointwise(dual, torch.ones(4, x.shape[1]), None)
        # Where nothing has a tangent there is nothing to refuse.
        assert torch.equal(run(x), ops.gated_conv(*block.args, **block.options))

    def run_reference(x):
        return ops.gated_conv_reference(x, *others, **block.options)

    tangent = torch.func.jvp(run_reference, (x,), (torch.ones_like(x),))[1]
    assert tangent.abs().max() > 0


@pytest.mark.parametrize(("batch", "frames"), [(0, 5), (2, 0)])
def test_an_empty_batch_or_clip_gives_zero_gradients(make_block, batch, frames):
    arguments, differentiable = leaves(make_block(batch=batch, frames=frames, gates="float"))
    ops.gated_conv(*arguments).sum().backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in differentiable)
