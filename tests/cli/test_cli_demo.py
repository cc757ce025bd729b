import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import dyncp_kernels.evaluation.demonstration as demonstration
from dyncp_kernels.audio import StreamingEnhancer, audio_info, enhance, read_audio, write_audio
from dyncp_kernels.cli import build_app
from dyncp_kernels.evaluation.demonstration import demonstrate
from dyncp_kernels.nn import ConvFSENet, save


def small_net(site):
    torch.manual_seed(0)
    model = ConvFSENet(channels=16, hidden=24, stacks=1, site=site).eval()
    for block in model.blocks:
        if block.gate is not None:
            torch.nn.init.normal_(block.gate.expand.weight, std=2.0)
            torch.nn.init.normal_(block.gate.expand.bias, std=0.3)
    return model


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    static = save(small_net("none"), folder / "static").with_suffix("")
    pruned = save(small_net("output"), folder / "pruned").with_suffix("")
    return ["--static", str(static), "--pruned", str(pruned), "--seconds", "0.1"]


def dyncp(*arguments):
    return CliRunner(env={"COLUMNS": "140"}).invoke(build_app(), [str(argument) for argument in arguments])


def test_the_clip_that_comes_along_is_enhanced_scored_and_drawn(tmp_path, options):
    result = dyncp("demo", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["clean.wav", "noisy.wav", "pruned.png", "pruned.wav", "static.wav"]
    assert {audio_info(tmp_path / "out" / name).frames for name in written if name.endswith("wav")} == {120000}
    rows = {line.split("│")[1].strip(): line for line in result.output.splitlines() if line.startswith("│")}
    assert {"noisy", "static", "pruned", "saving of pruned"} <= rows.keys()
    static_macs = 2 * 257 * 16 + 3 * 24 * (16 + 3 + 16)
    assert f"{static_macs:,}" in rows["static"]
    assert "100.0%" in rows["static"]
    assert all(float(rows[name].split("│")[-2]) > 1.0 for name in ("noisy", "static", "pruned"))


def test_networks_of_one_file_name_go_by_their_folders_too(tmp_path):
    paths = {site: tmp_path / site / "best" for site in ("none", "output", "hidden")}
    for site, path in paths.items():
        save(small_net(site), path)
    pruned = ["--pruned", paths["output"], "--pruned", paths["hidden"]]
    result = dyncp("demo", "-o", tmp_path / "out", "--static", paths["none"], *pruned, "--seconds", "0.1")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "hidden-best.wav").exists()
    twice = dyncp("demo", "-o", tmp_path / "out", "--static", paths["none"], "--pruned", paths["none"])
    assert "the networks must differ" in twice.output


def test_ones_own_recording_needs_no_reference(tmp_path, options):
    samples = 0.1 * np.random.default_rng(0).standard_normal((2, 44100)).astype(np.float32)
    write_audio(tmp_path / "mine.wav", samples, 44100)
    result = dyncp("demo", tmp_path / "mine.wav", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "clean.wav").exists()
    assert audio_info(tmp_path / "out" / "pruned.wav").frames == 16000


def test_bad_recordings_are_one_line(tmp_path, options):
    (tmp_path / "bad.wav").write_text("no audio")
    result = dyncp("demo", tmp_path / "bad.wav", "-o", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert "dyncp demo: " in result.output
    assert "must be an audio file" in result.output


def test_results_hold_what_the_library_gives(tmp_path):
    noisy = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    models = {"static": small_net("none"), "pruned": small_net("hidden")}
    result = demonstrate(models, noisy, tmp_path, timing_seconds=0.05)
    expected = enhance(models["pruned"].fold(), noisy)
    assert np.abs(read_audio(tmp_path / "pruned.wav") - expected).max() < 1e-4
    assert result.models["static"].usage == 1.0
    assert 0.0 < result.models["pruned"].usage < 1.0
    assert result.models["static"].macs_per_frame == models["static"].macs_per_frame
    assert result.models["pruned"].macs_per_frame < models["pruned"].macs_per_frame
    assert result.models["pruned"].pesq is result.noisy_pesq is None
    assert all(row.time.streaming > 0 and row.time.offline > 0 for row in result.models.values())
    assert torch.get_num_threads() == result.models["static"].time.threads


def test_nothing_is_timed_when_streaming_is_wrong(tmp_path, monkeypatch):
    original = StreamingEnhancer.push

    def wrong(self, samples, **options):
        return original(self, samples, **options) * np.float32(0.9)

    monkeypatch.setattr(StreamingEnhancer, "push", wrong)
    monkeypatch.setattr(demonstration, "frame_times", lambda *a, **k: pytest.fail("timed a wrong result"))
    noisy = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    with pytest.raises(RuntimeError, match=r"static: streaming must equal offline to 0\.0001 of full scale \(got"):
        demonstrate({"static": small_net("none")}, noisy, tmp_path)


def test_a_reference_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"clean must be as long as noisy \(got \(9,\), \(10,\)\)"):
        demonstrate({}, np.zeros(10, np.float32), tmp_path, clean=np.zeros(9, np.float32))
