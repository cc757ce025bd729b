"""Runs a small part of the block suite under compute-sanitizer's memcheck and racecheck; for ``make gpu``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = Path(__file__).resolve().parent / "test_gpu_block.py"
SELECTION = "(test_forward_equals_reference and frame) or test_gradients_never or test_step_never"


def main() -> int:
    """0 when nothing was found, or when the tool is absent or does not support the device, which is said."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        print("compute-sanitizer is not installed: memcheck and racecheck were not run")
        return 0
    for check in ("memcheck", "racecheck"):
        # Without the caching allocator every tensor is an allocation of its own, whose ends are watched.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-x", str(SUITE)]
        result = subprocess.run([*command, "-k", SELECTION], env=environment, capture_output=True, text=True)
        output = result.stdout + result.stderr
        if "Device not supported" in output:
            print(f"compute-sanitizer does not support this device: {check} was not run")
            continue
        if result.returncode != 0:
            print(output[-8000:])
            return 1
        print(f"compute-sanitizer {check}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
