"""The order and the limits of `make gpu`, and what it makes of compute-sanitizer, without a GPU."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(load_script):
    return load_script(ROOT / "benchmarks" / "run_gpu.py")


HANGS = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); time.sleep(60)"
TOUCHES = "import time, pathlib\nfor _ in range(600): pathlib.Path({!r}).touch(); time.sleep(0.1)"


def test_a_step_that_hangs_is_ended_with_all_it_started(script, tmp_path):
    touched = tmp_path / "touched"
    steps = script.Steps(60)
    command = [sys.executable, "-c", HANGS.format(TOUCHES.format(str(touched)))]
    assert steps.run("hangs", command, 4).startswith("did not end in")
    assert steps.left() > 20
    last = touched.stat().st_mtime
    time.sleep(0.5)
    assert touched.stat().st_mtime == last


def test_all_steps_share_the_time(script):
    steps = script.Steps(0.5)
    assert steps.run("sleeps", [sys.executable, "-c", "import time; time.sleep(60)"], 60).startswith("did not end")
    assert steps.run("fails", [sys.executable, "-c", "raise SystemExit(3)"], 60).startswith(("failed", "did not end"))


@pytest.fixture
def dry(script, monkeypatch, tmp_path):
    """Runs main() with commands that only get recorded; outcomes are given by step."""
    recorded = []

    def go(outcomes, reasons=(), seconds=460.0):
        def output_of(command):
            if command[-2:-1] == [script.REASON]:
                return dict(reasons).get(command[-1], "")
            return ""

        def finish(self, name, process, limit):
            state = outcomes.get(name, script.PASSED)
            self.states.append((name, state, 0.0))
            return state

        monkeypatch.setattr(script, "ROOT", tmp_path)
        monkeypatch.setattr(script, "_output_of", output_of)
        monkeypatch.setattr(script.Steps, "start", lambda self, command, **environment: recorded.append(command))
        monkeypatch.setattr(script.Steps, "finish", finish)
        monkeypatch.setattr(script.shutil, "which", lambda *args, **options: "/usr/bin/nvcc")
        status = script.main(["--seconds", str(seconds)])
        return status, [" ".join(command[1:]) for command in recorded]

    return go


def _measured(commands):
    return [
        command for command in commands if "dyncp_kernels.bench.gpu " in command and "--compile-only" not in command
    ]


def test_what_passes_is_measured_and_the_page_written(dry):
    status, commands = dry({})
    assert status == 0
    (measured,) = _measured(commands)
    assert "--ours cuda,triton" in measured
    assert "--note tests of triton: passed" in measured
    assert commands[-1] == "-m dyncp_kernels.bench.gpu_report benchmarks/results benchmarks/GPU.md"


@pytest.mark.parametrize("step", ["tests of cuda", "compute-sanitizer, cuda"])
def test_a_back_end_that_is_wrong_is_not_measured(dry, step):
    status, commands = dry({step: "failed with status 1"})
    assert status == 1
    (measured,) = _measured(commands)
    assert "--ours triton" in measured
    assert f"--note {step}: failed with status 1" in measured


def test_nothing_is_measured_when_nothing_passes(dry):
    status, commands = dry({"tests of cuda": "failed with status 1", "tests of triton": "did not end in 140 s"})
    assert status == 1
    assert _measured(commands) == []
    assert not any("gpu_report" in command for command in commands)


def test_a_back_end_that_is_missing_is_said_and_the_other_measured(dry, tmp_path):
    stale = tmp_path / "dyncp_kernels" / "_C_cuda.abi3.so"
    stale.parent.mkdir()
    stale.touch()
    status, commands = dry({"build": "failed with status 1"}, reasons={"cuda": "it was not built"})
    assert status == 1
    assert not stale.exists()
    (measured,) = _measured(commands)
    assert "--ours triton" in measured
    assert "--note tests of cuda: not run: it was not built" in measured


def test_without_time_left_nothing_is_measured(dry):
    status, commands = dry({}, seconds=25.0)
    assert _measured(commands) == []
    assert status == 1


def test_checks_that_cannot_run_are_told_from_checks_that_found_something(load_script):
    sanitize = load_script(ROOT / "tests" / "gpu" / "sanitize.py")
    assert sanitize.outcome("memcheck", 0, "3 passed") == (True, "compute-sanitizer memcheck: nothing found")
    assert sanitize.outcome("racecheck", 9, "hazard")[0] is False
    assert sanitize.outcome("memcheck", 1, "2 failed, 1 passed")[0] is False
    is_right, words = sanitize.outcome("racecheck", 255, "Error: Device not supported\n")
    assert is_right
    assert words.endswith("could not run here: Error: Device not supported")
    assert "not finished in time" in sanitize.outcome("racecheck", None, "")[1]
