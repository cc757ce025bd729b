"""The sweep over block sizes of the Triton forward, in its own process: Triton reads its switch at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "sweep_gpu_tiles.py"


def test_all_blocks_of_the_sweep_give_the_same_results():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "all blocks give the same results" in result.stdout
