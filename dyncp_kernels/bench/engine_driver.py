"""The streaming engine in a program without Python: built from the objects of the extension, run on workloads."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import dyncp_kernels
from dyncp_kernels.bench.engines.dyncp import Stream
from dyncp_kernels.bench.measure import Check, Timing, compare_masks, timing_of
from dyncp_kernels.bench.workload import Workload

__all__ = ["build_driver", "reason_for_no_driver", "run_masks", "run_times", "write_case"]

_ROOT = Path(dyncp_kernels.__file__).resolve().parent.parent
_DRIVER = _ROOT / "benchmarks" / "engine_driver.cpp"
_OBJECTS = _ROOT / "build" / "objects"


def _compiler() -> str | None:
    return os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def _objects() -> list[Path]:
    """The objects of the core that the extension was built from."""
    core = _ROOT / "csrc" / "core"
    objects = [_OBJECTS / f"core.{source.stem}.o" for source in sorted(core.glob("*.cpp"))]
    for source in sorted((core / "kernels").glob("*.cpp")):
        objects += sorted(_OBJECTS.glob(f"kernels.{source.stem}.[a-z0-9]*.o"))
    return [path for path in objects if path.exists() and not path.name.endswith(".new.o")]


def reason_for_no_driver() -> str | None:
    """Why it cannot be built, or None when it can."""
    compiler, objects = _compiler(), _objects()
    if compiler is not None and objects and _DRIVER.is_file():
        return None
    return (
        "a program without Python needs a C++ compiler and the source folder in which the extension was built with "
        f"`python setup.py build_ext --inplace` (got compiler {compiler}, {len(objects)} objects in {_OBJECTS})"
    )


def build_driver(folder: Path) -> Path:
    """Build the program in ``folder``.

    Raises:
        RuntimeError: it cannot be built.
    """
    compiler, reason = _compiler(), reason_for_no_driver()
    if compiler is None or reason is not None:
        raise RuntimeError(reason)
    driver = folder / "engine_driver"
    options = ["-std=c++17", "-O2", f"-I{_ROOT / 'csrc'}"]
    _run([*shlex.split(compiler), *options, str(_DRIVER), *map(str, _objects()), "-pthread", "-o", str(driver)])
    return driver


def write_case(folder: Path, work: Workload, dtype: str) -> None:
    """Write what the program reads: the packed network, a new stream, its frames, and what places its gates."""
    stream = Stream(work, 1, dtype)
    stream.reset()
    arrays = {
        "packed": stream.engine.model.tensor.numpy(),
        "state": stream.engine._state.numpy(),
        "features": np.ascontiguousarray(work.features[0].T.numpy()),
        "index": np.zeros(0, np.int64),
        "biases": np.zeros(0, np.float32),
    }
    if stream.placed is not None:
        arrays |= {"index": stream.placed.index.astype(np.int64), "biases": stream.placed.biases}
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        array.tofile(folder / name)


def run_masks(
    driver: Path, folder: Path, work: Workload, dtype: str, under: Sequence[str] = ()
) -> tuple[Check, subprocess.CompletedProcess[str]]:
    """Run all frames of a case once.

    Args:
        driver: the program.
        folder: of the case.
        work: its workload, which its masks are compared with.
        dtype: of its weights.
        under: command that runs the program, for valgrind, with the instruction set that runs there.
    """
    environment = {"DYNCP_ISA": ""} if under else {}
    result = _run([*under, str(driver), "masks", str(folder)], environment)
    masks = np.fromfile(folder / "masks", np.float32).reshape(1, work.frames, -1).transpose(0, 2, 1)
    return compare_masks(masks, work.expected.numpy(), dtype), result


def run_times(driver: Path, folders: Sequence[Path], seconds: float, other_bytes: int = 0) -> list[Timing]:
    """Microseconds of a frame of each case, the cases taking turns.

    Args:
        driver: the program.
        folders: of the cases.
        seconds: about how long to measure.
        other_bytes: of other data that are read before each call.
    """
    _run([str(driver), "times", str(seconds), str(other_bytes), *map(str, folders)])
    return [timing_of(1e3 * np.fromfile(folder / "times", np.float64), 1) for folder in folders]


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command[:1])} failed with status {result.returncode}: {result.stderr[-2000:]}")
    return result
