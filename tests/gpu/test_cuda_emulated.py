"""The CUDA C++ kernels executed on the processor, thread by thread, against the reference: no GPU needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("gated_conv.cu", "gated_conv_step.cu", "gated_conv_backward.cu", "binding.cpp")
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernels and their binding, built for the emulator."""
    folder = tmp_path_factory.mktemp("emulator")
    torch_root = Path(torch.__file__).resolve().parent
    flags = ["-O1", "-std=c++17", "-fPIC", "-DDYNCP_EMULATED", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += [f"-isystem{torch_root / 'include'}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'gpu' / 'emulator'}"]

    def build(name):
        target = folder / f"{name}.o"
        command = [COMPILER, *flags, "-x", "c++", "-c", str(ROOT / "csrc" / "cuda" / name), "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, SOURCES))
    output = folder / "libdyncp_emulated.so"
    link = [COMPILER, "-shared", *objects, "-o", str(output), f"-L{torch_root / 'lib'}", "-ltorch_cpu"]
    subprocess.run(link, check=True)
    return output


def _environment(library, **further):
    settings = {"DYNCP_TEST_ENGINE": "emulator", "DYNCP_EMULATOR": str(library), "OMP_NUM_THREADS": "1"}
    return os.environ | settings | further


@pytest.mark.parametrize("reverse", ["0", "1"], ids=["threads in order", "threads in reverse order"])
def test_suites_pass_in_any_order_of_threads(library, reverse):
    suites = [str(ROOT / "tests" / "gpu" / name) for name in ("test_gpu_block.py", "test_gpu_pruned_memory.py")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *suites]
    if reverse == "1":
        command += ["-k", "equal"]
    environment = _environment(library, DYNCP_EMULATOR_REVERSE=reverse)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout


TF32 = """
import sys, torch
from dyncp_kernels.ops.reference import gated_conv_reference
torch.ops.load_library(sys.argv[1])
torch.manual_seed(0)
for channels, hidden in ((40, 72), (300, 80)):
    x = torch.randn(2, channels, 70)
    gate = torch.rand(2, hidden, 70) < 0.4
    tensors = [gate, None, 0.2 * torch.randn(hidden, channels), torch.randn(hidden), torch.randn(hidden, 3), None,
               0.2 * torch.randn(channels, hidden), None, None, None]
    expected = gated_conv_reference(x, *tensors)
    exact = torch.ops.dyncp_cuda.gated_conv(x, *tensors)
    fast = torch.ops.dyncp_cuda.gated_conv(x, *tensors, allow_tf32=True)
    print(((exact - expected).norm() / expected.norm()).item(), ((fast - expected).norm() / expected.norm()).item())
"""


def test_tf32_is_close_and_only_used_when_allowed(library):
    """Also with so many channels that x is read again for each 64 hidden channels."""
    command = [sys.executable, "-c", TF32, str(library)]
    result = subprocess.run(command, env=_environment(library), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    for line in result.stdout.splitlines():
        exact, fast = map(float, line.split())
        assert exact < 2e-6
        assert 1e-5 < fast < 1e-3


FAR = """
import sys, torch
torch.ops.load_library(sys.argv[1])
x, w, w_out = torch.randn(1, 4, 5), torch.randn(4, 3), torch.randn(4, 4)
for dilation in (2**29, 2**29 + 1, 2**62):
    try:
        y = torch.ops.dyncp_cuda.gated_conv(x, None, None, None, None, w, None, w_out, None, dilation=dilation)
        print(tuple(y.shape))
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


def test_taps_beyond_32_bits_are_refused(library):
    command = [sys.executable, "-c", FAR, str(library)]
    result = subprocess.run(command, env=_environment(library), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    kept, *refused = result.stdout.splitlines()
    assert kept == "(1, 4, 5)"
    assert all("(taps - 1) * dilation must be at most 2^30" in line for line in refused)
    assert len(refused) == 2


STEPS = """
import sys, torch
from dyncp_kernels.ops.reference import gated_conv_step_reference
torch.ops.load_library(sys.argv[1])
torch.manual_seed(0)
for streams in (1, 5, 17, 300):
    x, history = torch.randn(streams, 8), torch.randn(streams, 12, 4)
    tensors = [torch.rand(streams, 12) < 0.3, torch.rand(streams, 8) < 0.5, torch.randn(12, 8), torch.randn(12),
               torch.randn(12, 3), torch.randn(12), torch.randn(8, 12), torch.randn(8), None, None]
    expected = gated_conv_step_reference(x, history, *tensors, dilation=2)
    for want, have in zip(expected, torch.ops.dyncp_cuda.gated_conv_step(x, history, *tensors, dilation=2)):
        assert (want - have).norm() <= 2e-6 * want.norm()
"""

# Processors, bytes of shared memory, and the blocks of 1, 5, 17 and 300 streams.
SHARING = [
    ("1000", str(227 * 1024), [1, 5, 17, 300]),
    ("4", str(227 * 1024), [1, 3, 3, 38]),
    ("100", str(227 * 1024), [1, 5, 17, 75]),
    ("4", "1024", [1, 3, 5, 75]),
]


@pytest.mark.parametrize(("processors", "shared", "blocks"), SHARING)
def test_streams_share_blocks_where_there_are_fewer_processors(library, processors, shared, blocks):
    """Each step is one launch, and two blocks fit into a processor's shared memory."""
    command = [sys.executable, "-c", STEPS, str(library)]
    settings = {"DYNCP_EMULATOR_PROCESSORS": processors, "DYNCP_EMULATOR_SHARED": shared, "DYNCP_EMULATOR_TRACE": "1"}
    environment = _environment(library, **settings)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    launches = [line.split() for line in result.stderr.splitlines() if line.startswith("launch")]
    assert [int(launch[1]) for launch in launches] == blocks
    assert all(int(launch[2]) <= int(shared) // 2 for launch in launches)


TILES = """
import os, sys, torch
torch.ops.load_library(sys.argv[1])
torch.manual_seed(0)
for dtype, channels in ((torch.float32, 130), (torch.bfloat16, 264), (torch.float16, 264)):
    def draw(*shape):
        return torch.randn(*shape).to(dtype)
    x, gate = draw(1, channels, 30), torch.rand(1, 40, 30) < 0.4
    tensors = [gate, None, draw(40, channels), draw(40), draw(40, 3), None, draw(channels, 40), None, None, None]
    results = []
    for kilobytes in (227, 99, 64, 32):
        os.environ["DYNCP_EMULATOR_SHARED"] = str(kilobytes * 1024)
        print("with", kilobytes, file=sys.stderr)
        try:
            results.append(torch.ops.dyncp_cuda.gated_conv(x, *tensors))
        except RuntimeError as error:
            print(str(error).splitlines()[0], file=sys.stderr)
    with_x, without_x, in_parts = results
    assert torch.equal(with_x, without_x)
    assert (with_x.float() - in_parts.float()).norm() <= 8e-3 * with_x.float().norm()
"""

TOO_LARGE = "gated_conv: the CUDA kernel must be able to run (got: tiles larger than the shared memory of this GPU)"


def test_block_runs_where_a_gpu_has_less_shared_memory(library):
    """First x is read again for other hidden channels, then activations go through memory; then it is an error."""
    command = [sys.executable, "-c", TILES, str(library)]
    environment = _environment(library, DYNCP_EMULATOR_TRACE="1")
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    runs = [run.splitlines() for run in result.stderr.split("with ")[1:]]
    assert len(runs) == 12
    for kilobytes, *lines in runs:
        if kilobytes == "32":
            assert lines == [TOO_LARGE]
            continue
        used = [int(line.split()[2]) for line in lines]
        assert len(used) == (3 if kilobytes == "64" else 1)
        assert max(used) <= int(kilobytes) * 1024
        assert max(used) > 99 * 1024 or kilobytes != "227"
