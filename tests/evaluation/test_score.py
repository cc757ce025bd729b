"""Scoring a model on files, through the library and through ``dyncp train`` and ``dyncp eval``."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dyncp_kernels._extension import extension_loaded
from dyncp_kernels.evaluation.mask_files import load_masks
from dyncp_kernels.nn import ConvFSENet, macs_per_frame, save

sf = pytest.importorskip("soundfile")
for module in ("pesq", "pystoi", "safetensors", "typer", "rich"):
    pytest.importorskip(module)

from typer.testing import CliRunner  # noqa: E402

from dyncp_kernels.cli import build_app  # noqa: E402
from dyncp_kernels.evaluation.score import score  # noqa: E402
from dyncp_kernels.training.data import find_pairs  # noqa: E402

RATE = 16000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pairs")
    t = np.arange(3 * RATE) / RATE
    for i in range(2):
        rng = np.random.default_rng(i)
        tone = sum(np.sin(2 * np.pi * k * (110 + 30 * i) * t) / k for k in range(1, 20))
        clean = (0.08 * tone * np.clip(np.sin(2 * np.pi * 3 * t), 0, 1)).astype(np.float32)
        for name, samples in (("clean", clean), ("noisy", clean + 0.02 * rng.standard_normal(len(t)))):
            (root / name).mkdir(exist_ok=True)
            sf.write(root / name / f"{i}.wav", samples, RATE)
    return root / "clean", root / "noisy"


def _model(site: str) -> ConvFSENet:
    torch.manual_seed(0)
    model = ConvFSENet(channels=12, hidden=16, stacks=1, site=site).eval()
    for block in model.blocks:
        if block.gate is not None:
            torch.nn.init.normal_(block.gate.expand.bias)
    return model


def _pass_through(model: ConvFSENet) -> ConvFSENet:
    """Open the output mask, so that the enhanced signal is the noisy one."""
    with torch.no_grad():
        model.back.weight.zero_()
        model.back.bias.fill_(40.0)
    return model


def test_an_open_mask_scores_like_the_noisy_file(folders: tuple[Path, Path]) -> None:
    report = score(_pass_through(_model("none")).fold(), find_pairs(*folders))
    for row in report.utterances:
        assert row.pesq == pytest.approx(row.noisy_pesq, abs=0.01)
        assert row.stoi == pytest.approx(row.noisy_stoi, abs=1e-4)
        assert row.si_sdr == pytest.approx(row.noisy_si_sdr, abs=1e-3)
        assert row.seconds == 3.0
        assert row.usage == 1.0
    assert report.overall is None
    assert abs(report.means()["pesq_gain"].mean) < 0.01


def test_usage_and_macs_come_from_the_masks_that_were_used(folders: tuple[Path, Path]) -> None:
    model = _model("hidden").fold()
    report = score(model, find_pairs(*folders))
    frames = 3 * RATE // 256 + 1 + 1
    for row, masks in zip(report.utterances, report.masks):
        assert [mask.shape for mask in masks] == [(16, frames)] * 3
        assert row.usage == pytest.approx(np.mean([mask.mean() for mask in masks]))
        kept = sum(mask.sum(0).mean() for mask in masks)
        expected = macs_per_frame(model.config, hidden_kept=0) + kept * (12 + 3 + 12)
        assert row.macs_per_frame == pytest.approx(expected)
    assert report.overall is not None
    assert report.overall.usage == pytest.approx(report.means()["usage"].mean)


def test_the_streaming_engine_scores_like_the_offline_network(folders: tuple[Path, Path]) -> None:
    if not extension_loaded():
        pytest.skip("the native extension is not built")
    model, pairs = _model("both").fold(), find_pairs(*folders)
    offline, streaming = score(model, pairs), score(model, pairs, precision="float32")
    for a, b in zip(offline.utterances, streaming.utterances):
        assert b.pesq == pytest.approx(a.pesq, abs=1e-3)
        assert b.si_sdr == pytest.approx(a.si_sdr, abs=1e-3)
        assert b.macs_per_frame == pytest.approx(a.macs_per_frame, rel=1e-4)
    assert [m.shape for m in offline.masks[0]] == [m.shape for m in streaming.masks[0]]


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        score(_model("none").fold(), [])


def test_eval_command_writes_scores_summary_and_masks(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save(_model("hidden"), tmp_path / "net")
    names = ("scores.csv", "summary.json", "masks.npz")
    out, summary, masks = (tmp_path / name for name in names)
    call = ["eval", str(tmp_path / "net"), "--clean", str(folders[0]), "--noisy", str(folders[1])]
    result = CliRunner().invoke(build_app(), [*call, "-o", str(out), "--summary", str(summary), "--masks", str(masks)])
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(out.open()))
    assert [row["name"] for row in rows] == ["0", "1"]
    values = json.loads(summary.read_text())
    assert values["files"] == 2
    assert values["pesq"]["mean"] == pytest.approx(np.mean([float(row["pesq"]) for row in rows]))
    assert values["dynamism"]["usage"] == pytest.approx(np.mean([m.mean() for f in load_masks(masks) for m in f]))
    assert "wideband PESQ" in result.output


def test_eval_command_refuses_masks_of_a_static_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save(_model("none"), tmp_path / "net")
    call = ["eval", str(tmp_path / "net"), "--clean", str(folders[0]), "--noisy", str(folders[1])]
    result = CliRunner().invoke(build_app(), [*call, "--masks", str(tmp_path / "m")])
    assert result.exit_code == 1
    assert "needs a gated model" in result.output


def test_eval_command_names_a_missing_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app(), ["eval", "gone", "--clean", str(tmp_path), "--noisy", str(tmp_path)])
    assert result.exit_code == 1
    assert "must be a shipped name" in result.output


def test_train_command_trains_from_a_config_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        "batch = 2\nvalidate_every = 2\n[data]\nseconds = 0.5\n[model]\nchannels = 8\nhidden = 8\nstacks = 1\n"
    )
    options = ["--clean", str(folders[0]), "--noisy", str(folders[1]), "--steps", "2"]
    result = CliRunner().invoke(build_app(), ["train", str(config), "-o", str(tmp_path / "run"), *options])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run/best.safetensors").is_file()


def test_train_command_refuses_a_config_without_data(tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app(), ["train", "static", "-o", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "exactly one of voicebank" in result.output


def test_files_of_one_name_in_two_folders_are_told_apart(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for kind, folder in zip(("clean", "noisy"), folders):
        for speaker in ("A", "B"):
            (tmp_path / kind / speaker).mkdir(parents=True)
            shutil.copy(folder / "0.wav", tmp_path / kind / speaker / "1.wav")
    report = score(_model("none").fold(), find_pairs(tmp_path / "clean", tmp_path / "noisy"))
    assert [utterance.name for utterance in report.utterances] == ["A/1", "B/1"]


def test_a_file_that_cannot_be_scored_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for kind, folder in zip(("clean", "noisy"), folders):
        (tmp_path / kind).mkdir()
        samples, _ = sf.read(folder / "0.wav")
        sf.write(tmp_path / kind / "quiet.wav", samples * (kind == "noisy"), RATE)
    with pytest.raises(ValueError, match=r"quiet\.wav: .*clean must not be silent"):
        score(_model("none").fold(), find_pairs(tmp_path / "clean", tmp_path / "noisy"))


def test_a_model_of_another_rate_is_scored_at_the_rates_of_the_measures(folders: tuple[Path, Path]) -> None:
    torch.manual_seed(0)
    config = {"bins": 769, "n_fft": 1536, "hop": 768, "sample_rate": 48000}
    wide = _pass_through(ConvFSENet(channels=12, hidden=16, stacks=1, **config).eval())
    at_48, at_16 = (score(model.fold(), find_pairs(*folders)) for model in (wide, _pass_through(_model("none"))))
    for got, expected in zip(at_48.utterances, at_16.utterances):
        assert got.noisy_pesq == pytest.approx(expected.noisy_pesq, abs=0.03)
        assert got.noisy_stoi == pytest.approx(expected.noisy_stoi, abs=0.01)


def test_a_perfect_file_makes_the_mean_infinite_and_no_error(folders: tuple[Path, Path]) -> None:
    clean, _ = folders
    report = score(_pass_through(_model("none")).fold(), [(clean / "0.wav", clean / "0.wav")])
    assert report.means()["noisy_si_sdr"].mean == np.inf


@pytest.mark.parametrize("option", ["-o", "--summary", "--masks"])
def test_eval_command_refuses_a_missing_folder_before_it_scores(
    folders: tuple[Path, Path], tmp_path: Path, option: str
) -> None:
    model, path = save(_model("hidden"), tmp_path / "m"), tmp_path / "no" / "file"
    clean, noisy = folders
    arguments = ["eval", str(model), "--clean", str(clean), "--noisy", str(noisy), option, str(path)]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 1
    assert "its folder must exist" in result.output
    assert "PESQ" not in result.output


def test_train_command_takes_seed_0_and_keeps_the_training_data_of_the_file(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    clean, noisy = folders
    (tmp_path / "run.toml").write_text(
        "steps = 1\nbatch = 1\nseed = 7\n[model]\nchannels = 12\nhidden = 16\nstacks = 1\n"
        f"[data]\nclean = '{clean}'\nnoisy = '{noisy}'\nseconds = 0.5\n"
    )
    options = ["--seed", "0", "--valid-clean", str(clean), "--valid-noisy", str(noisy)]
    result = CliRunner().invoke(
        build_app(), ["train", str(tmp_path / "run.toml"), "-o", str(tmp_path / "run"), *options]
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 0
