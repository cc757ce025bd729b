"""The network: shapes, identity of closed blocks, folding, streaming, files."""

import importlib
import json
import math
import os
import stat

import pytest
import torch

from dyncp_kernels.nn import (
    ConvFSENet,
    ConvFSENetConfig,
    GatedBlock,
    calibrate,
    load,
    macs_from_gates,
    save,
    shift_for_budget,
    warm_start,
)

SITES = ["none", "output", "hidden", "both"]


def _trained(**overrides: object) -> ConvFSENet:
    """A small network with BatchNorm statistics, slopes and gates that are anything but trivial."""
    torch.manual_seed(3)
    small = {"n_fft": 64, "bins": 33, "hop": 32, "channels": 12, "hidden": 20, "dilations": (1, 2), "stacks": 2}
    model = ConvFSENet(ConvFSENetConfig.from_dict({**ConvFSENetConfig().to_dict(), **small, **overrides}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gate." in name and "expand" in name:
                parameter.copy_(torch.randn_like(parameter))
            elif "act" in name:
                parameter.uniform_(0.05, 0.4)
            elif "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for block in model.blocks:
            for norm in (block.norm_in, block.norm_dw):
                norm.running_mean.copy_(0.2 * torch.randn_like(norm.running_mean))
                norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize("site", SITES)
def test_mask_has_the_features_shape_and_lies_between_0_and_1(site: str) -> None:
    model = _trained(site=site)
    mask, gates = model(torch.rand(2, 33, 17), return_gates=True)
    assert mask.shape == (2, 33, 17)
    assert 0 < mask.min() <= mask.max() < 1
    assert len(gates) == 4
    for hidden, out in gates:
        assert (hidden is not None) == (site in ("hidden", "both"))
        assert (out is not None) == (site in ("output", "both"))
        assert hidden is None or hidden.shape == (2, 20, 17)
        assert out is None or out.shape == (2, 12, 17)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("activation", ["relu", "prelu"])
@pytest.mark.parametrize("causal", [True, False])
def test_folded_network_equals_the_trained_one(site: str, activation: str, causal: bool) -> None:
    pooling = "exponential" if causal else "centred"
    model = _trained(site=site, activation=activation, causal=causal, gate_pooling=pooling).double()
    features = torch.rand(3, 33, 29, dtype=torch.float64)
    mask, gates = model(features, return_gates=True)
    folded_mask, folded_gates = model.fold()(features, return_gates=True)
    torch.testing.assert_close(folded_mask, mask, rtol=1e-10, atol=1e-10)
    for trained, folded in zip(gates, folded_gates):
        for a, b in zip(trained, folded):
            assert (a is None) == (b is None)
            if a is not None:
                assert b.dtype == torch.bool
                assert torch.equal(a != 0, b)
                assert 0 < b.double().mean() < 1


@pytest.mark.parametrize("gate_per", ["utterance", "static"])
def test_folding_keeps_gates_that_are_constant_over_time(gate_per: str) -> None:
    model = _trained(site="hidden", gate_per=gate_per)
    features = torch.rand(2, 33, 11)
    torch.testing.assert_close(model.fold()(features), model(features))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("pooling", ["average", "exponential", "window"])
def test_streaming_equals_offline(site: str, pooling: str) -> None:
    model = _trained(site=site, gate_pooling=pooling, gate_window=5).fold().double()
    features = torch.rand(2, 33, 40, dtype=torch.float64)
    offline, gates = model(features, return_gates=True)
    state = model.initial_state(2)
    for t in range(features.shape[-1]):
        mask, state, used = model.step(features[..., t], state)
        torch.testing.assert_close(mask, offline[..., t], rtol=1e-9, atol=1e-9)
        for now, whole in zip(used, gates):
            assert now.hidden is None or torch.equal(now.hidden, whole.hidden[..., t])
            assert now.out is None or torch.equal(now.out, whole.out[..., t])


def test_a_step_leaves_its_state_untouched() -> None:
    model = _trained(site="hidden").fold()
    state = model.initial_state(1)
    frame = torch.rand(1, 33)
    first, _, _ = model.step(frame, state)
    again, _, _ = model.step(frame, state)
    assert torch.equal(first, again)


def test_causal_network_never_sees_the_future() -> None:
    model = _trained(site="both").fold()
    features = torch.rand(1, 33, 30)
    changed = features.clone()
    changed[..., 18:] = torch.rand(1, 33, 12)
    torch.testing.assert_close(model(features)[..., :18], model(changed)[..., :18], rtol=0, atol=1e-6)


@pytest.mark.parametrize("overrides", [{"causal": False, "gate_pooling": "global"}, {"gate_per": "utterance"}])
def test_what_looks_ahead_refuses_to_stream(overrides: dict[str, object]) -> None:
    model = _trained(site="output", **overrides).fold()
    with pytest.raises(RuntimeError, match="streaming needs a causal network"):
        model.initial_state()


@pytest.mark.parametrize("site", ["output", "hidden", "both"])
def test_closed_gates_make_every_block_the_identity(site: str) -> None:
    model = _trained(site=site)
    x = torch.randn(2, 12, 9)
    for block in model.blocks:
        y, gates = block(x, shift=-1e6)
        assert all(site is None or not site.any() for site in gates)
        assert torch.equal(y, x)
        y, _ = model.fold().blocks[0](x, -1e6)
        assert torch.equal(y, x)


def test_gates_receive_a_gradient_from_the_mask() -> None:
    model = _trained(site="both").train()
    model(torch.rand(2, 33, 17)).square().mean().backward()
    for block in model.blocks:
        assert block.gate.expand.weight.grad.abs().sum() > 0


def test_wrong_features_are_refused_with_what_came() -> None:
    model = _trained()
    for network in (model, model.fold()):
        with pytest.raises(ValueError, match=r"features must be \(batch, 33, frames\) \(got \(2, 32, 5\)\)"):
            network(torch.rand(2, 32, 5))
    with pytest.raises(ValueError, match=r"frame must be \(batch, 33\) \(got \(2, 32\)\)"):
        model.fold().step(torch.rand(2, 32), model.fold().initial_state(2))


def test_block_refuses_a_gate_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"needs a gate with 128 outputs \(got 0\)"):
        GatedBlock(site="output")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"site": "middle"}, "site must be one of"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"dilations": ()}, "dilations must be positive"),
        ({"bins": 100}, "bins must be n_fft // 2"),
        ({"causal": False, "kernel_size": 2, "dilations": (1,)}, "centred depthwise"),
        ({"site": "hidden", "gate_pooling": "global"}, "must be causal"),
        ({"width": 3}, "keys must be fields"),
    ],
)
def test_config_refuses_what_cannot_work(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvFSENetConfig.from_dict(values)


def test_config_survives_json() -> None:
    config = ConvFSENetConfig(site="both", dilations=(1, 3))
    assert ConvFSENetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_calibrated_budget_gives_about_the_usage_that_was_asked_for() -> None:
    model = _trained(site="hidden")
    clips = [torch.rand(1, 33, 60) for _ in range(3)]
    model.calibration = calibrate(model, clips)
    usages, shifts = zip(*model.calibration)
    assert list(usages) == sorted(usages)
    assert list(shifts) == sorted(shifts)
    assert usages[0] < 0.1
    assert usages[-1] > 0.9
    folded = model.fold()
    for budget in (0.3, 0.6):
        shift = shift_for_budget(folded.calibration, budget)
        _, gates = folded(torch.cat(clips), shift, return_gates=True)
        used = sum(g.hidden.double().mean().item() for g in gates) / len(gates)
        assert used == pytest.approx(budget, abs=0.08)


def test_calibration_finds_usages_that_shifts_pass_through_steeply(monkeypatch) -> None:
    # Not a network's own scores but the masks of earlier blocks can make usage jump, which quantiles of scores miss.
    module = importlib.import_module("dyncp_kernels.nn.calibrate")
    monkeypatch.setattr(module, "_usage", lambda model, clips, shift: 1 / (1 + math.exp(-30 * (shift + 1.05))))
    points = calibrate(_trained(site="hidden"), [torch.rand(1, 33, 20)])
    usages, shifts = zip(*points)
    assert list(usages) == sorted(usages)
    assert list(shifts) == sorted(shifts)
    for wished in (0.02, 0.1, 0.25, 0.5, 0.8, 0.98):
        assert min(abs(usage - wished) for usage in usages) <= 0.01


def test_budget_without_calibration_is_refused() -> None:
    assert shift_for_budget([], None) == 0.0
    with pytest.raises(ValueError, match="without calibration"):
        shift_for_budget([], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        shift_for_budget([(0.1, -1.0)], 1.5)


def test_a_saved_model_comes_back_the_same(tmp_path) -> None:
    pytest.importorskip("safetensors")
    model = _trained(site="both")
    model.calibration = [(0.25, -1.0), (0.5, 0.5)]
    path = save(model, tmp_path / "net", {"note": "x"})
    back = load(tmp_path / "net")
    assert path.name == "net.safetensors"
    assert not back.training
    assert back.config == model.config
    assert back.calibration == model.calibration
    features = torch.rand(1, 33, 8)
    assert torch.equal(back(features), model(features))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_model_files_follow_the_umask(tmp_path) -> None:
    save(ConvFSENet(stacks=1), tmp_path / "model")
    (tmp_path / "plain").touch()
    assert len({stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}) == 1


def test_broken_model_files_are_refused_by_name(tmp_path) -> None:
    pytest.importorskip("safetensors")
    with pytest.raises(FileNotFoundError, match="must be a shipped name"):
        load(tmp_path / "none")
    path = save(_trained(), tmp_path / "net")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load(path)
    path.write_bytes(whole)
    text = path.with_suffix(".json")
    values = json.loads(text.read_text())
    values["config"]["channels"] = 13
    text.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="must have shape"):
        load(path)
    for broken in ({"config": None}, {"config": {"channels": "12"}}, {"calibration": [[None, 0]]}):
        text.write_text(json.dumps({**values, **broken}))
        with pytest.raises(ValueError, match=r"net\.json: a model config must describe a Conv-FSENet"):
            load(path)
    text.write_text("{")
    with pytest.raises(ValueError, match="valid JSON"):
        load(path)
    text.write_text("[]")
    with pytest.raises(ValueError, match="format 1"):
        load(path)
    text.unlink()
    with pytest.raises(FileNotFoundError, match="config beside its tensors"):
        load(path)


def test_a_folded_model_is_not_saved_as_a_trainable_one(tmp_path) -> None:
    with pytest.raises(TypeError, match="save_folded writes folded ones"):
        save(_trained().fold(), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_warm_start_copies_all_but_the_gates() -> None:
    static, gated = _trained(), _trained(site="hidden")
    with torch.no_grad():
        static.front.weight.add_(1.0)
    fresh = warm_start(gated, static)
    assert all(".gate." in name for name in fresh)
    assert fresh
    assert torch.equal(gated.front.weight, static.front.weight)
    with pytest.raises(ValueError, match=r"front\.weight must have shape"):
        warm_start(_trained(channels=13), static)


def test_macs_of_a_run_follow_its_gates() -> None:
    model = _trained(site="hidden").fold()
    features = torch.rand(2, 33, 20)
    _, gates = model(features, return_gates=True)
    _, closed = model(features, -1e6, return_gates=True)
    gate_networks = 4 * 8 * (12 + 20)
    assert macs_from_gates(model.config, closed) == 2 * 33 * 12 + gate_networks
    kept = sum(g.hidden.double().sum(1).mean().item() for g in gates)
    assert macs_from_gates(model.config, gates) == pytest.approx(2 * 33 * 12 + gate_networks + kept * (12 + 3 + 12))
