"""The suites of tests/gpu on the Triton interpreter, in its own process: Triton reads the switch at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

FOLDER = Path(__file__).resolve().parent.parent / "gpu"
SUITES = [str(FOLDER / "test_gpu_block.py"), str(FOLDER / "test_gpu_pruned_memory.py")]


def _numbers(version):
    return tuple(int(part) for part in version.split(".")[:2])


@pytest.mark.skipif(
    _numbers(triton.__version__) < (3, 7) and _numbers(np.__version__) >= (2, 4),
    reason="the interpreter of Triton before 3.7 needs NumPy before 2.4",
)
def test_suites_pass_under_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "DYNCP_TEST_ENGINE": "interpreter", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *SUITES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout
