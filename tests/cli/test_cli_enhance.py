import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dyncp_kernels.audio import audio_info, enhance, read_audio, write_audio
from dyncp_kernels.cli import build_app
from dyncp_kernels.nn import ConvFSENet, load, save


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    torch.manual_seed(0)
    model = ConvFSENet(channels=16, hidden=24, stacks=1, site="output").eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.gate.expand.weight, std=2.0)
        torch.nn.init.normal_(block.gate.expand.bias, std=0.3)
    model.calibration = [(0.0, -1e3), (1.0, 1e3)]
    return str(save(model, tmp_path_factory.mktemp("model") / "small"))


def noise(seconds, rate=16000, channels=None, seed=0):
    shape = int(seconds * rate) if channels is None else (channels, int(seconds * rate))
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def dyncp(*arguments):
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_one_file_to_one_file_equals_the_library_call(tmp_path, model_path):
    write_audio(tmp_path / "in.wav", noise(1.0), 16000, subtype="FLOAT")
    result = dyncp("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--model", model_path)
    assert result.exit_code == 0, result.output
    expected = enhance(load(model_path).fold(), noise(1.0))
    assert np.abs(read_audio(tmp_path / "out.wav") - expected).max() < 1e-5
    assert audio_info(tmp_path / "out.wav").subtype == "FLOAT"


def test_the_line_of_a_file_states_duration_speed_usage_and_saving(tmp_path, model_path):
    write_audio(tmp_path / "in.wav", noise(1.5), 16000)
    result = dyncp("enhance", tmp_path / "in.wav", "-o", tmp_path / "out", "--model", model_path, "--budget", "1")
    assert f"{tmp_path / 'out' / 'in.wav'}: 1.50 s, real-time factor 0." in result.output
    # gates that keep everything cost their own network on top
    gates = 3 * 8 * (16 + 16) / (2 * 257 * 16 + 3 * 24 * (16 + 3 + 16))
    assert f"100.0% of the gated channels used, {-gates:.1%} of the MACs saved" in result.output


def test_a_model_without_gates_says_so(tmp_path):
    path = save(ConvFSENet(channels=8, hidden=8, stacks=1), tmp_path / "plain")
    write_audio(tmp_path / "in.wav", noise(0.3), 16000)
    result = dyncp("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--model", path)
    assert "no gates" in result.output


def test_streaming_gives_the_same_file(tmp_path, model_path):
    write_audio(tmp_path / "in.wav", noise(1.3, channels=2), 16000, subtype="FLOAT")
    for name, option in (("whole.wav", []), ("stream.wav", ["--stream"])):
        result = dyncp("enhance", tmp_path / "in.wav", "-o", tmp_path / name, "--model", model_path, *option)
        assert result.exit_code == 0, result.output
    whole, stream = (read_audio(tmp_path / name, channels=True) for name in ("whole.wav", "stream.wav"))
    assert np.abs(whole - stream).max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_rate_channels_and_length_stay(tmp_path, model_path, rate):
    samples = noise(0.731, rate, channels=2)
    write_audio(tmp_path / "in.flac", samples, rate, subtype="PCM_24")
    assert dyncp("enhance", tmp_path / "in.flac", "-o", tmp_path / "out", "--model", model_path).exit_code == 0
    info = audio_info(tmp_path / "out" / "in.flac")
    assert (info.sample_rate, info.channels, info.frames) == (rate, 2, samples.shape[1])
    assert info.subtype == "PCM_24"


def test_channels_are_enhanced_apart(tmp_path, model_path):
    stereo = noise(1.0, channels=2)
    write_audio(tmp_path / "in.wav", stereo, 16000, subtype="FLOAT")
    dyncp("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--model", model_path)
    model = load(model_path).fold()
    expected = np.stack([enhance(model, channel) for channel in stereo])
    assert np.abs(read_audio(tmp_path / "out.wav", channels=True) - expected).max() < 1e-5


def test_folders_keep_their_shape_and_bad_files_do_not_stop_the_rest(tmp_path, model_path):
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    write_audio(source / "a.wav", noise(0.4), 16000)
    write_audio(source / "deep" / "b.ogg", noise(0.4), 16000)
    write_audio(source / "d.flac", noise(0.4), 16000)
    (source / "bad.wav").write_bytes(b"not audio at all")
    (source / "cut.flac").write_bytes((source / "d.flac").read_bytes()[:3000])
    (source / "empty.ogg").touch()
    result = dyncp("enhance", source, tmp_path / "missing.wav", "-o", tmp_path / "out", "--model", model_path)
    assert result.exit_code == 1
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.wav", "d.flac", "deep/b.ogg"]
    lines = result.output.splitlines()
    for name in ("bad.wav", "cut.flac", "empty.ogg", "missing.wav"):
        assert sum(f"{name}: " in line and "(got" in line for line in lines) == 1, name
    assert "4 of 7 files failed" in result.output
    assert "Traceback" not in result.output


def test_an_input_is_never_overwritten(tmp_path, model_path):
    write_audio(tmp_path / "a.wav", noise(0.3), 16000)
    before = (tmp_path / "a.wav").read_bytes()
    result = dyncp("enhance", tmp_path, "-o", tmp_path, "--model", model_path)
    assert result.exit_code == 1
    assert "output must not overwrite an input" in result.output
    assert (tmp_path / "a.wav").read_bytes() == before


def test_two_inputs_of_one_name_are_not_written_over_each_other(tmp_path, model_path):
    for folder, seed in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        write_audio(tmp_path / folder / "a.wav", noise(0.3, seed=seed), 16000)
    result = dyncp("enhance", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "out", "--model", model_path)
    assert result.exit_code == 1
    assert "outputs must have different names" in result.output


def test_a_loud_result_is_lowered_with_a_note(tmp_path, model_path, monkeypatch):
    write_audio(tmp_path / "in.wav", 0.99 * np.sign(noise(0.3)), 16000)
    monkeypatch.setattr("dyncp_kernels.audio.enhance_file.enhance", lambda model, samples, **_: (2 * samples, []))
    result = dyncp("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--model", model_path)
    assert result.exit_code == 0
    assert "to avoid clipping" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model"], "a model must be a shipped name"),
        (["--budget", "1.5"], "budget"),
    ],
)
def test_mistakes_are_one_line_and_a_failing_status(tmp_path, model_path, arguments, message):
    write_audio(tmp_path / "in.wav", noise(0.3), 16000)
    model = [] if "--model" in arguments else ["--model", model_path]
    result = dyncp("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", *model, *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out.wav").exists()


def test_models_that_look_ahead_do_not_stream(tmp_path):
    path = save(ConvFSENet(channels=8, hidden=8, stacks=1, causal=False), tmp_path / "centred")
    write_audio(tmp_path / "in.wav", noise(0.3), 16000)
    result = dyncp("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--model", path, "--stream")
    assert result.exit_code == 1
    assert "streaming needs a causal network" in result.output


def test_a_folder_without_audio_is_an_error(tmp_path, model_path):
    result = dyncp("enhance", tmp_path, "-o", tmp_path / "out", "--model", model_path)
    assert result.exit_code == 1
    assert "inputs must hold audio files" in result.output


def test_help_lists_the_commands_without_heavy_imports():
    code = (
        "import json, sys\n"
        "from dyncp_kernels.cli import build_app\n"
        "app = build_app()\n"
        "heavy = ['matplotlib', 'scipy', 'soundfile', 'soxr', 'pesq', 'rich.table', 'safetensors']\n"
        "print(json.dumps([[c.name for c in app.registered_commands], [m for m in heavy if m in sys.modules]]))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    commands, heavy = json.loads(output)
    assert {"enhance", "demo", "info"} <= set(commands)
    assert heavy == []
    assert dyncp("--help").exit_code == 0


def test_missing_typer_is_one_clear_line():
    code = "import sys; sys.modules['typer'] = None\nfrom dyncp_kernels.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("dyncp: typer is needed")
    assert "dyncp_kernels[cli]" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("second", ["b/x.wav", "b/x.flac"])
def test_another_input_is_not_overwritten_before_its_turn(tmp_path, model_path, second):
    for name, seed in (("a/x.wav", 1), (second, 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_audio(tmp_path / name, noise(0.3, seed=seed), 16000)
    before = (tmp_path / second).read_bytes()
    inputs = (tmp_path / "a" / "x.wav", tmp_path / second)
    result = dyncp("enhance", *inputs, "-o", tmp_path / "b", "--model", model_path)
    assert result.exit_code == 1
    assert "output must not overwrite an input" in result.output
    assert (tmp_path / second).read_bytes() == before


def test_what_an_earlier_run_wrote_below_the_inputs_is_no_input(tmp_path, model_path):
    write_audio(tmp_path / "a.wav", noise(0.3), 16000)
    for _ in range(2):
        assert dyncp("enhance", tmp_path, "-o", tmp_path / "done", "--model", model_path).exit_code == 0
    assert [path.name for path in (tmp_path / "done").rglob("*")] == ["a.wav"]


def test_an_mp3_is_read_and_becomes_a_file_that_can_be_written(tmp_path, model_path):
    soundfile = pytest.importorskip("soundfile")
    if "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile has no MP3")
    soundfile.write(tmp_path / "a.mp3", noise(0.5), 16000)
    result = dyncp("enhance", tmp_path / "a.mp3", "-o", tmp_path / "out", "--model", model_path)
    assert result.exit_code == 0, result.output
    assert audio_info(tmp_path / "out" / "a.wav").subtype == "PCM_16"
    refused = dyncp("enhance", tmp_path / "a.mp3", "-o", tmp_path / "b.mp3", "--model", model_path)
    assert refused.exit_code == 1
    assert "--out must be a folder or end in one of" in refused.output
    assert not (tmp_path / "b.mp3").exists()


def test_absurdly_loud_files_do_not_stop_the_rest(tmp_path, model_path):
    write_audio(tmp_path / "a.wav", 1e30 * noise(0.3), 16000, subtype="FLOAT")
    write_audio(tmp_path / "b.wav", noise(0.3), 16000)
    result = dyncp("enhance", tmp_path, "-o", tmp_path / "out", "--model", model_path)
    assert result.exit_code == 1
    assert "a.wav: samples must be within 1e+06 times full scale" in result.output
    assert (tmp_path / "out" / "b.wav").exists()
