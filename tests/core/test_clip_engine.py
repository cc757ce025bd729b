from __future__ import annotations

import pytest
import torch

from dyncp_kernels.audio import enhance
from dyncp_kernels.clip_engine import ClipEngine, for_clips
from dyncp_kernels.nn import ConvFSENet
from dyncp_kernels.nn.block import BlockGates

pytestmark = pytest.mark.usefixtures("needs_extension")

NETWORKS = {
    "static": {},
    "hidden": {"site": "hidden"},
    "output, ReLU, average": {"site": "output", "activation": "relu", "gate_pooling": "average"},
    "both": {"site": "both"},
    "per utterance": {"site": "both", "gate_per": "utterance"},
    "static gates": {"site": "hidden", "gate_per": "static"},
    "centred": {"site": "both", "causal": False, "gate_pooling": "centred"},
    "global": {"site": "hidden", "causal": False, "gate_pooling": "global"},
}


def network(**options):
    torch.manual_seed(0)
    model = ConvFSENet(stacks=1, **options).eval()
    for block in model.blocks:
        if block.gate is not None:
            torch.nn.init.normal_(
                block.gate.score if hasattr(block.gate, "score") else block.gate.expand.bias, 0.0, 0.3
            )
    return model.fold()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 300), (3, 70), (2, 1), (2, 0)])
@torch.no_grad()
def test_gives_the_bits_of_the_folded_network(name, shape, each_instruction_set):
    model = network(**NETWORKS[name])
    features = torch.rand(shape[0], 257, shape[1])
    mask, gates = model(features, shift=0.05, return_gates=True)
    got, used = ClipEngine(model)(features, shift=0.05, return_gates=True)
    assert torch.equal(got, mask)
    for expected, block in zip(gates, used, strict=True):
        for a, b in zip(expected, block, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("name", ["both", "centred"])
@torch.no_grad()
def test_does_not_depend_on_the_number_of_threads(name, each_instruction_set, with_threads):
    # With one or two threads, the blocks of two clips overwrite their input; with three they do not.
    engine = ClipEngine(network(**NETWORKS[name]))
    features = torch.rand(2, 257, 150)
    masks = with_threads((1, 2, 3), lambda: engine(features))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@torch.no_grad()
def test_a_channel_closed_at_some_frames_leaks_nothing_into_them(each_instruction_set):
    # The last block overwrites its input, and must not do so with the NaN of a weight that is closed.
    model = network(site="hidden")
    engine = ClipEngine(model)
    features = torch.rand(2, 257, 100)
    gates = [torch.rand_like(hidden, dtype=torch.float32) < 0.8 for hidden, _ in engine(features, return_gates=True)[1]]
    gates[-1][:, 3] = True
    gates[-1][:, 3, 20:60] = False
    packed = engine.packed([BlockGates(hidden, None) for hidden in gates])
    clean = engine.run_with_gates(features, packed)
    model.blocks[-1].w_out[:, 3] = float("nan")
    mask = ClipEngine(model).run_with_gates(features, packed)
    assert torch.equal(mask[..., 20:60], clean[..., 20:60])
    assert torch.isnan(mask[..., :20]).all()
    assert torch.isnan(mask[..., 60:]).all()


@torch.no_grad()
def test_given_gates_take_the_place_of_the_decisions():
    model = network(site="both")
    engine = ClipEngine(model)
    features = torch.rand(2, 257, 100)
    shifted, gates = engine(features, shift=0.4, return_gates=True)
    assert torch.equal(engine.run_with_gates(features, engine.packed(gates)), shifted)
    assert not torch.equal(engine(features), shifted)


def test_takes_the_place_of_the_model_in_enhance():
    model = network(site="hidden")
    samples = torch.randn(4000) * 0.1
    assert torch.equal(enhance(ClipEngine(model), samples), enhance(model, samples))


def test_for_clips_takes_the_model_itself_where_the_engine_cannot_run():
    model = network()
    assert isinstance(for_clips(model), ClipEngine)
    assert for_clips(model.double()) is model


def test_wrong_arguments_are_refused():
    engine = ClipEngine(network())
    with pytest.raises(RuntimeError, match=r"clip_masks: features must have 257 bins \(got shape \[1, 256, 9\]\)"):
        engine(torch.rand(1, 256, 9))
    with pytest.raises(RuntimeError, match="clip_masks: features must be a float32 tensor"):
        engine(torch.rand(1, 257, 9, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="clip_masks: instead must be a contiguous int64 tensor of shape"):
        engine.run_with_gates(torch.rand(1, 257, 9), torch.ones(1, dtype=torch.bool))
    weights, plan = engine._weights, engine._plan
    with pytest.raises(RuntimeError, match="plan: every weight must lie inside"):
        torch.ops.dyncp.clip_masks(torch.rand(1, 257, 9), weights[:1000], plan)
    with pytest.raises(RuntimeError, match="plan must have"):
        torch.ops.dyncp.clip_masks(torch.rand(1, 257, 9), weights, plan[:-1].clone())
