"""Runs a small part of the block suite under compute-sanitizer's memcheck and racecheck; for ``make gpu``.

``python tests/gpu/sanitize.py [--backend triton|cuda] [--seconds N]``.  Both tools run at the same time, on our own
kernels only.
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

SUITE = Path(__file__).resolve().parent / "test_gpu_block.py"
SELECTION = "((test_forward_equals_reference and frame) or test_gradients_never or test_step_never)"
CHECKS = ("memcheck", "racecheck")
FOUND = 9  # exit status of a check that found something

# Parts of the names of our kernels: the namespace of the CUDA C++ ones, and each Triton kernel.
KERNELS = ("dyncp", "list_channels", "pad_frames", "fused_block", "pointwise", "depthwise", "step", "_gradient")


def command_of(tool: str, check: str, backend: str | None) -> list[str]:
    """The command that runs the suite under one check."""
    command = [tool, "--tool", check, "--error-exitcode", str(FOUND), "--report-api-errors", "no"]
    for kernel in KERNELS:
        command += ["--kernel-name", f"kernel_substring={kernel}"]
    selection = SELECTION if backend is None else f"{SELECTION} and {backend}"
    return [*command, sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(SUITE), "-k", selection]


def outcome(check: str, status: int | None, output: str) -> tuple[bool, str]:
    """Whether a check found nothing wrong, and what to say about it; a check that could not run found nothing."""
    if status == 0:
        return True, f"compute-sanitizer {check}: nothing found"
    if status is None:
        return True, f"compute-sanitizer {check}: not finished in time, so it says nothing"
    if status != FOUND and " failed" not in output:
        reason = output.strip().splitlines()[-1:] or ["no output"]
        return True, f"compute-sanitizer {check}: could not run here: {reason[0]}"
    return False, f"{output[-8000:]}\ncompute-sanitizer {check}: found errors"


def main(arguments: list[str] | None = None) -> int:
    """1 when a check found something; 0 otherwise, also when it could not run, which is said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("triton", "cuda"))
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args(arguments)
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        print("compute-sanitizer is not installed: memcheck and racecheck were not run")
        return 0
    # Without the caching allocator every tensor is an allocation of its own, whose ends are watched.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    end = time.monotonic() + options.seconds
    runs = {}
    for check in CHECKS:
        runs[check] = subprocess.Popen(
            command_of(tool, check, options.backend),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    is_right = True
    for check, process in runs.items():
        status: int | None
        try:
            output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, status = process.communicate()[0], None
        found_nothing, words = outcome(check, status, output or "")
        is_right = is_right and found_nothing
        print(words, flush=True)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
