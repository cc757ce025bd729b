"""All of ``make gpu``: build, tests, compute-sanitizer, measurements and the page, within a fixed time.

Needs only the standard library, and what the interpreter that runs it has: torch with a CUDA GPU, pytest, and, where
they are there, triton, nvcc, pytest-xdist and compute-sanitizer.  A back-end whose tests fail or hang is not measured,
and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("tests/gpu/test_gpu_block.py", "tests/gpu/test_gpu_runtime.py")
BACKENDS = ("cuda", "triton")
PASSED = "passed"

# Seconds that each step may take; the measurements get what is left.
LIMITS = {"device": 60, "build": 170, "cuda": 90, "triton": 140, "sanitizer": 75}
LEAST_MEASUREMENT = 30

DEVICE = "import sys, torch; sys.exit(not torch.cuda.is_available())"
REASON = "import sys; from dyncp_kernels.ops import backends; print(backends.BACKENDS[sys.argv[1]].unavailable() or '')"


class Steps:
    """Runs commands one after the other or side by side, each within its limit and all within `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.states: list[tuple[str, str, float]] = []

    def left(self) -> float:
        """Seconds until the time for everything is up."""
        return self.end - time.monotonic()

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own, so that what it starts can be ended with it."""
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, start_new_session=True)

    def finish(self, name: str, process: subprocess.Popen[bytes], limit: float) -> str:
        """Wait for a command, end it after its limit, and give its state."""
        start = time.monotonic()
        try:
            status = process.wait(max(0.1, min(limit, self.left())))
            state = PASSED if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = f"did not end in {time.monotonic() - start:.0f} s"
        self.states.append((name, state, time.monotonic() - start))
        print(f"make gpu: {name}: {state}", flush=True)
        return state

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> str:
        """Start a command, wait for it and give its state."""
        return self.finish(name, self.start(command, **environment), limit)

    def say(self, name: str, state: str) -> None:
        """Note a step that did not run."""
        self.states.append((name, state, 0.0))
        print(f"make gpu: {name}: {state}", flush=True)


def _output_of(command: list[str]) -> str | None:
    """What a short command prints, or None when it fails."""
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMITS["device"])
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _build(steps: Steps, python: str) -> None:
    command = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
    library = ROOT / "dyncp_kernels" / "_C_cuda.abi3.so"
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin") or os.environ.get("CUDA_HOME")
    if found and steps.run("build", command, LIMITS["build"], DYNCP_CUDA="1") == PASSED:
        return
    if not found:
        steps.say("build of the CUDA kernels", "nvcc is not installed")
    # A library of an earlier build must not be tested and measured in its place.
    library.unlink(missing_ok=True)
    steps.run("build without the CUDA kernels", command, LIMITS["build"], DYNCP_CUDA="0")


def _test(steps: Steps, python: str) -> list[str]:
    """The back-ends whose tests passed."""
    right = []
    workers = ["-n", "8"] if _output_of([python, "-c", "import xdist"]) is not None else []
    for backend in BACKENDS:
        reason = _output_of([python, "-c", REASON, backend])
        if reason != "":
            steps.say(f"tests of {backend}", f"not run: {reason or 'the package cannot be imported'}")
            continue
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", *workers, *SUITES, "-k", backend]
        if steps.run(f"tests of {backend}", command, LIMITS[backend]) == PASSED:
            right.append(backend)
    return right


def _sanitize(steps: Steps, python: str, right: list[str]) -> list[str]:
    """The back-ends in which compute-sanitizer found nothing; what has to be compiled for them is, meanwhile."""
    limit = min(LIMITS["sanitizer"], steps.left() - LEAST_MEASUREMENT)
    if limit < 10:
        steps.say("compute-sanitizer", "not run: no time left")
        return right
    end = time.monotonic() + limit
    running = {}
    for backend in right:
        command = [python, "tests/gpu/sanitize.py", "--backend", backend, "--seconds", f"{limit - 5:.0f}"]
        running[backend] = steps.start(command)
    command = [python, "-m", "dyncp_kernels.bench.gpu", "--compile-only", "--seconds", f"{limit / 2:.0f}"]
    ahead = steps.start([*command, "--ours", ",".join(right)])
    states = {
        backend: steps.finish(f"compute-sanitizer, {backend}", process, end - time.monotonic())
        for backend, process in running.items()
    }
    steps.finish("compiling ahead", ahead, end - time.monotonic())
    return [backend for backend, state in states.items() if not state.startswith("failed")]


def _measure(steps: Steps, python: str, right: list[str]) -> None:
    seconds = steps.left() - 30
    if seconds < LEAST_MEASUREMENT:
        steps.say("measurements", "not run: no time left")
        return
    command = [python, "-m", "dyncp_kernels.bench.gpu", "--out", "benchmarks/results", "--seconds", f"{seconds:.0f}"]
    command += ["--ours", ",".join(right)]
    for name, state, _ in steps.states:
        command += ["--note", f"{name}: {state}"]
    # Results are written after each size, so that the page can be made of a run that did not end.
    steps.run("measurements", command, steps.left() - 5)
    command = [python, "-m", "dyncp_kernels.bench.gpu_report", "benchmarks/results", "benchmarks/GPU.md"]
    steps.run("page", command, 30)


def main(arguments: list[str] | None = None) -> int:
    """0 when everything that could run passed and was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=460.0, help="time for everything")
    options = parser.parse_args(arguments)
    python = sys.executable
    steps = Steps(options.seconds)
    if _output_of([python, "-c", DEVICE]) is None:
        print(
            f"make gpu: {python} must have torch with a CUDA GPU (got none): nothing was built, tested or measured",
            file=sys.stderr,
        )
        return 1
    _build(steps, python)
    right = _test(steps, python)
    if right:
        right = _sanitize(steps, python, right)
    if right:
        _measure(steps, python, right)
    else:
        steps.say("measurements", "not run: no back-end passed its tests")
    print("\nmake gpu:")
    for name, state, seconds in steps.states:
        print(f"  {name}: {state} ({seconds:.0f} s)")
    is_red = any(state.startswith(("failed", "did not")) for _, state, _ in steps.states)
    return int(is_red or ("measurements", PASSED) not in [(name, state) for name, state, _ in steps.states])


if __name__ == "__main__":
    sys.exit(main())
