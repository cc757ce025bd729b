"""The core alone: compiled without torch and Python, run natively and as NEON code under emulation."""

import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dyncp_kernels.audio import enhance
from dyncp_kernels.engine import StreamEngine, save_folded
from dyncp_kernels.nn import ConvFSENet

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PARTS = ["stream", "offline"]  # of the core, each with a self-test
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def run_self_test(part: str, folder: Path, build: list, objects: list[str], run: list, arguments: list[str]) -> str:
    """What the self-test of a part prints; `build` is the compiler with flags, `run` what starts the program."""
    source, program = Path(__file__).with_name(f"{part}_self_test.cpp"), folder / "self_test"
    flags = ["-O2", "-std=gnu++17", *WARNINGS, f"-I{CSRC}"]
    subprocess.run([*build, *flags, source, *objects, "-o", program], check=True)
    result = subprocess.run([*run, program, *arguments], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, "\n".join(line for line in result.stdout.splitlines() if not line.startswith("ok"))
    return result.stdout


@pytest.fixture(scope="module")
def compiler(package_setup):
    """The compiler of the package's own build, with the flags that its objects ask for."""
    found = package_setup.find_compiler()
    if found is None:
        pytest.skip("a C++ compiler is needed to build the core")
    return [*shlex.split(found), *package_setup.further_flags()]


@pytest.fixture(scope="module")
def native_objects(package_setup):
    """The objects of the core in the package's own build, brought up to date."""
    jobs = package_setup.core_jobs(shlex.split(package_setup.find_compiler()))
    with package_setup.building():
        package_setup.compile_changed(jobs)
    return [str(job.target) for job in jobs]


@pytest.fixture(scope="module")
def arm_core(tmp_path_factory, package_setup):
    """Folder with library and example for aarch64, where every warning is an error."""
    if not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)):
        pytest.skip(f"NEON is tested with {ARM_COMPILER} and {ARM_EMULATOR}")
    folder = tmp_path_factory.mktemp("arm")
    package_setup.build_core([ARM_COMPILER], folder, folder / "objects", [*WARNINGS, "-static"])
    return folder


def test_clang_takes_the_core_without_warnings(package_setup):
    # Only checked, as building it all would take minutes.
    if shutil.which("clang++") is None:
        pytest.skip("Clang is not installed")

    def check(job):
        command = [*job.compiler, *job.flags, *WARNINGS, "-fsyntax-only", job.source]
        return subprocess.run(command, capture_output=True, text=True).stderr

    with ThreadPoolExecutor(2) as pool:
        assert "".join(pool.map(check, package_setup.core_jobs(["clang++"]))) == ""


@pytest.fixture(scope="module")
def example(compiler, tmp_path_factory, package_setup):
    """The C example, as `make core` builds it."""
    folder = tmp_path_factory.mktemp("core")
    with package_setup.building():
        package_setup.build_core(shlex.split(package_setup.find_compiler()), folder)
    return folder / "enhance_wav"


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> None:
    is_float = samples.dtype == np.float32
    width = 4 if is_float else 2
    words = (3 if is_float else 1, 1), (rate, rate * width), (width, 8 * width)
    form = b"".join(np.array(pair, "<u4" if i == 1 else "<u2").tobytes() for i, pair in enumerate(words))
    data = samples.tobytes()
    size = np.array([36 + len(data)], "<u4").tobytes()
    path.write_bytes(
        b"RIFF" + size + b"WAVEfmt \x10\0\0\0" + form + b"data" + np.array([len(data)], "<u4").tobytes() + data
    )


@pytest.mark.parametrize("part", PARTS)
def test_core_equals_plain_loops_on_every_instruction_set(compiler, native_objects, tmp_path, part):
    printed = run_self_test(part, tmp_path, compiler, native_objects, [], [])
    assert "ok   portable" in printed
    assert part != "stream" or "are not read" in printed


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("processor", "has_dot_product"), [("max", True), ("cortex-a72", False)])
def test_core_equals_plain_loops_as_neon_code(arm_core, tmp_path, part, processor, has_dot_product):
    # The emulator maps pages as it likes, so pages are taken away natively only.
    arguments = ["--no-page-protection"] if part == "stream" else []
    objects = [str(path) for path in sorted((arm_core / "objects").glob("*.o"))]
    emulator = [ARM_EMULATOR, "-cpu", processor]
    printed = run_self_test(part, tmp_path, [ARM_COMPILER, "-static"], objects, emulator, arguments)
    assert "ok   neon " in printed
    assert ("ok   neondot " in printed) == has_dot_product


@pytest.mark.parametrize(("machine", "kept"), [("aarch64", ["portable", "neon"]), ("riscv64", ["portable"])])
def test_sets_that_the_compiler_does_not_know_are_left_out(package_setup, machine, kept):
    sets, flags = package_setup.instruction_sets(["false"], machine)
    assert list(sets) == kept
    assert flags == []


def gated_model() -> ConvFSENet:
    torch.manual_seed(0)
    model = ConvFSENet(site="hidden").eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.gate.expand.bias, 0.0, 0.3)
    return model


def test_header_and_example_are_plain_c():
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed to check C")
    source = CSRC / "example" / "enhance_wav.c"
    subprocess.run(["gcc", "-std=c99", "-pedantic", *WARNINGS, f"-I{CSRC}", "-fsyntax-only", source], check=True)


def test_c_example_for_arm_enhances_a_file_as_python_does(arm_core, tmp_path):
    model = gated_model()
    model.calibration = [(0.1, -1.0), (0.9, 0.5)]
    samples = (torch.randn(3000) * 0.1).numpy()
    save_folded(model, tmp_path / "model.safetensors")
    write_wav(tmp_path / "noisy.wav", samples)
    files = [tmp_path / name for name in ("model.safetensors", "noisy.wav", "clean.wav")]
    subprocess.run([ARM_EMULATOR, arm_core / "enhance_wav", *files, "float32", "0.3"], check=True)
    got = np.frombuffer((tmp_path / "clean.wav").read_bytes()[44:], "<f4")
    np.testing.assert_allclose(got, enhance(model, samples, budget=0.3), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_c_example_enhances_a_file_as_python_does(example, tmp_path, dtype):
    model = gated_model()
    samples = (torch.randn(5000) * 0.1).numpy()
    if dtype == np.int16:
        samples = np.round(samples * 32767).astype(np.int16)
    save_folded(model, tmp_path / "model.safetensors")
    write_wav(tmp_path / "noisy.wav", samples)
    arguments = [tmp_path / "model.safetensors", tmp_path / "noisy.wav", tmp_path / "clean.wav"]
    subprocess.run([example, *arguments], check=True)
    got = np.frombuffer((tmp_path / "clean.wav").read_bytes()[44:], "<f4")
    given = samples.astype(np.float32) / (32768 if dtype == np.int16 else 1)
    np.testing.assert_allclose(got, enhance(model, given), atol=1e-4)
    engine = StreamEngine(model)
    padded = np.concatenate([given, np.zeros(-len(given) % 256 + 256, np.float32)])
    np.testing.assert_allclose(got, engine.push_hop(padded)[256:][: len(given)], atol=2e-6)


def test_c_example_says_what_is_wrong_with_its_files(example, tmp_path):
    save_folded(ConvFSENet(stacks=1).eval(), tmp_path / "model.safetensors")
    write_wav(tmp_path / "noisy.wav", np.zeros(100, np.float32), rate=8000)
    (tmp_path / "text.wav").write_bytes(b"no sound here")
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-1])
    out = tmp_path / "clean.wav"
    for model, sound, message in (
        ("model.safetensors", "noisy.wav", "16000 samples per second"),
        ("model.safetensors", "text.wav", "must be a WAV file"),
        ("bad.safetensors", "noisy.wav", "must lie inside the file"),
        ("none.safetensors", "noisy.wav", "cannot open"),
    ):
        result = subprocess.run([example, tmp_path / model, tmp_path / sound, out], capture_output=True, text=True)
        assert result.returncode == 1, model
        assert message in result.stderr
        assert not out.exists()
