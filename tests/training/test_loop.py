"""The training loop: it learns, hits its usage target, logs, and resumes exactly."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dyncp_kernels.nn import ConvFSENetConfig, load, save
from dyncp_kernels.training.config import DataConfig, GateLossConfig, TrainConfig, load_train_config
from dyncp_kernels.training.loop import Trainer, train

sf = pytest.importorskip("soundfile")
for module in ("rich", "safetensors", "pesq"):
    pytest.importorskip(module)
RATE = 16000
RECIPES = {"static": "none", "narrow": "none", "dyncp_output": "output", "dyncp_hidden": "hidden"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: handing them to several threads costs more than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _speechlike(seed: int, seconds: float) -> np.ndarray:
    """Harmonics with syllable-like bursts: enough for PESQ to find an utterance."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = 110 + 20 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    return (0.08 * tone * np.clip(np.sin(2 * np.pi * 3 * t), 0, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("data")
    for folder, count in (("speech", 4), ("noise", 2), ("clean", 2), ("noisy", 2)):
        (root / folder).mkdir()
        for i in range(count):
            clean = _speechlike(i + (100 if folder in ("clean", "noisy") else 0), 2.0)
            noise = 0.03 * np.random.default_rng(i).standard_normal(len(clean)).astype(np.float32)
            sf.write(root / folder / f"{i}.wav", {"noise": noise, "noisy": clean + noise}.get(folder, clean), RATE)
    return DataConfig(
        speech=str(root / "speech"),
        noise=str(root / "noise"),
        valid_clean=str(root / "clean"),
        valid_noisy=str(root / "noisy"),
        seconds=0.5,
    )


def _run(data: DataConfig, site: str = "hidden", **values: object) -> TrainConfig:
    model = ConvFSENetConfig(channels=12, hidden=16, stacks=1, site=site)
    defaults = {"steps": 8, "batch": 4, "warmup_steps": 2, "validate_every": 4, "learning_rate": 3e-3}
    return TrainConfig(model=model, data=data, **{**defaults, **values})


def test_training_lowers_the_loss_and_logs_every_validation(data: DataConfig, tmp_path: Path) -> None:
    best = train(_run(data, "none", steps=60, validate_every=20), tmp_path, progress=False)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == [20, 40, 60]
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert load(best).config.site == "none"


def test_dcp_loss_drives_usage_to_the_target(data: DataConfig, tmp_path: Path) -> None:
    gate_loss = GateLossConfig(target=0.5, weight=20.0, ramp_steps=20)
    config = _run(data, steps=160, validate_every=160, learning_rate=1e-2, gate_loss=gate_loss)
    best = train(config, tmp_path, progress=False)
    row = list(csv.DictReader((tmp_path / "log.csv").open()))[-1]
    assert abs(float(row["valid_usage"]) - 0.5) < 0.15
    assert load(best).calibration


def test_training_for_budgets_lets_a_shift_open_and_close_channels(data: DataConfig, tmp_path: Path) -> None:
    gate_loss = GateLossConfig(target=0.4, weight=20.0, ramp_steps=20, budgets=(0.1, 1.0))
    config = _run(data, steps=160, validate_every=160, learning_rate=1e-2, gate_loss=gate_loss)
    train(config, tmp_path, progress=False)
    usages = [usage for usage, _ in load(tmp_path / "best").calibration]
    assert usages[0] < 0.2
    assert usages[-1] > 0.9


def test_frozen_norms_keep_the_statistics_of_the_model_to_start_from(data: DataConfig, tmp_path: Path) -> None:
    static = Trainer(_run(data, "none"), tmp_path / "static").model
    static.blocks[0].norm_in.running_mean.fill_(0.25)
    config = _run(data, warm_start=str(save(static, tmp_path / "net")), freeze_norm=True)
    trainer = Trainer(config, tmp_path / "gated")
    for step in range(3):
        trainer.train_step(trainer.batch(*trainer.source.batch(0, step, config.batch), step))
    norm = trainer.model.blocks[0].norm_in
    assert (norm.running_mean == 0.25).all()
    assert not torch.equal(norm.weight, static.blocks[0].norm_in.weight)
    assert trainer.model.blocks[0].expand.training


def test_a_resumed_run_continues_exactly(data: DataConfig, tmp_path: Path) -> None:
    config = _run(data)
    train(config, tmp_path / "whole", progress=False)
    first = Trainer(config, tmp_path / "cut")
    for step in range(4):
        first.train_step(first.batch(*first.source.batch(config.seed, step, config.batch), step))
    first.save_checkpoint()
    train(config, tmp_path / "cut", progress=False)
    whole, cut = (load(tmp_path / folder / "last").state_dict() for folder in ("whole", "cut"))
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name


def test_a_folder_with_another_run_is_refused(data: DataConfig, tmp_path: Path) -> None:
    Trainer(_run(data), tmp_path)
    with pytest.raises(ValueError, match="must have the same config"):
        Trainer(_run(data, seed=1), tmp_path)


def test_a_mistyped_data_folder_does_not_claim_the_folder_of_the_run(data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data folder must exist"):
        Trainer(_run(replace(data, speech=f"{data.speech}-typo")), tmp_path)
    assert Trainer(_run(data), tmp_path).step == 0


def test_a_file_that_cannot_be_scored_is_named_and_costs_no_steps(data: DataConfig, tmp_path: Path) -> None:
    for folder in ("clean", "noisy"):
        (tmp_path / folder).mkdir()
        sf.write(tmp_path / folder / "quiet.wav", np.zeros(RATE), RATE)
    valid = {"valid_clean": str(tmp_path / "clean"), "valid_noisy": str(tmp_path / "noisy")}
    with pytest.raises(ValueError, match=r"quiet\.wav: .*must not be silent"):
        train(_run(replace(data, **valid)), tmp_path / "run", progress=False)
    assert Trainer(_run(replace(data, **valid)), tmp_path / "run").step == 4


def test_validation_cuts_a_pair_to_its_shorter_file(data: DataConfig, tmp_path: Path) -> None:
    for folder, extra in (("clean", 300), ("noisy", 0)):
        (tmp_path / folder).mkdir()
        sf.write(tmp_path / folder / "0.wav", _speechlike(1, 2.0)[: 2 * RATE - 300 + extra], RATE)
    valid = {"valid_clean": str(tmp_path / "clean"), "valid_noisy": str(tmp_path / "noisy")}
    assert Trainer(_run(replace(data, **valid)), tmp_path / "run").validate()["valid_pesq"] > 1.0


def test_warm_start_begins_at_the_static_network_with_open_gates(data: DataConfig, tmp_path: Path) -> None:
    static = Trainer(_run(data, "none"), tmp_path / "static").model.eval()
    with torch.no_grad():
        static.front.weight.mul_(1.5)
    save(static, tmp_path / "net")
    gated = Trainer(_run(data, "both", warm_start=str(tmp_path / "net")), tmp_path / "gated").model.eval()
    features = torch.rand(1, 257, 20)
    torch.testing.assert_close(gated(features), static(features))


def test_a_loss_that_is_not_finite_stops_the_run(data: DataConfig, tmp_path: Path) -> None:
    trainer = Trainer(_run(data), tmp_path)
    batch = trainer.batch(*trainer.source.batch(0, 0, 4), 0)
    with pytest.raises(RuntimeError, match="must stay finite"):
        trainer.train_step(batch._replace(features=batch.features * float("nan")))


def test_learning_rate_warms_up_and_follows_a_cosine(data: DataConfig, tmp_path: Path) -> None:
    config = _run(data, steps=102, warmup_steps=2, learning_rate=1.0, final_learning_rate=0.0)
    rate = Trainer(config, tmp_path).learning_rate
    assert [rate(0), rate(1), rate(2)] == [0.5, 1.0, 1.0]
    assert rate(52) == pytest.approx(0.5)
    assert rate(102) == pytest.approx(0.0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_load_by_name_with_data_from_outside(recipe: str, tmp_path: Path) -> None:
    given = {"data": {"voicebank": str(tmp_path)}, "seed": 7, "warm_start": "static"}
    config = load_train_config(recipe, given)
    assert config.seed == 7
    assert config.data.voicebank == str(tmp_path)
    assert config.model.site == RECIPES[recipe]


def test_paths_are_relative_to_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[data]\nvoicebank = "vb"\nseconds = 2.0\n')
    config = load_train_config(path)
    assert config.data.voicebank == str(tmp_path / "vb")
    (tmp_path / "net.safetensors").touch()
    for name in ("net", "net.safetensors"):
        assert load_train_config(path, {"warm_start": name}).warm_start == str(tmp_path / name)
    given = load_train_config(path, {"data": {"clean": "/c", "noisy": "/n"}})
    assert given.data == replace(config.data, voicebank=None, clean="/c", noisy="/n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = ", "valid TOML"),
        ("stepps = 3\n[data]\nvoicebank = 'x'", r"known fields \(got \['stepps'\]"),
        ("[data]\nvoicebonk = 'x'", "known fields"),
        ("steps = 0\n[data]\nvoicebank = 'x'", "steps must be at least 1"),
        ("[gate_loss]\ntarget = 2.0\n[data]\nvoicebank = 'x'", "target must be between 0 and 1"),
        ("[gate_loss]\nrampsteps = 2\n[data]\nvoicebank = 'x'", r"gate_loss config: .*\['rampsteps'\]"),
        ("[data]\nvoicebank = 'x'\nseconds = '1'", "must have the types of their fields"),
        ("steps = 5\n[model]\nsite = 'hidden'\n[gate_loss]\nramp_steps = 5\n[data]\nvoicebank = 'x'", "below steps"),
        ("[gate_loss]\nbudgets = [0.5, 0.1]\n[data]\nvoicebank = 'x'", "budgets must be two shares"),
        ("freeze_norm = true\n[data]\nvoicebank = 'x'", "freeze_norm needs a warm_start"),
        ("batch = 6\n[gate_loss]\nbudgets = [0.1, 1.0]\n[data]\nvoicebank = 'x'", "batch must be a multiple of 4"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_train_config(path)


def test_a_missing_config_names_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dyncp_hidden"):
        load_train_config(tmp_path / "gone.toml")
