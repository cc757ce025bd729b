"""What a measurement ran on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dyncp_kernels import __version__
from dyncp_kernels._extension import LIBRARY, extension_loaded, instruction_set

__all__ = ["cache_bytes", "machine_header", "read_microseconds"]

_PACKAGES = ("torch", "numpy", "onnxruntime", "openvino")


def machine_header() -> dict[str, Any]:
    """Processor, caches, instruction set, operating system, versions, commit, date; None for what cannot be read."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "instruction_set": instruction_set(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "dyncp_kernels": __version__,
        "commit": _commit(),
        "compiler": _compiler(),
        **{package: _version(package) for package in _PACKAGES},
    }


def read_microseconds(count: int, repeats: int = 100) -> float:
    """Median time that one thread takes to read ``count`` bytes again and again with torch's dot product.

    A measure of the caches beside the time of a network with weights of that size; better code may read faster.
    """
    left, right = torch.ones(2, max(count // 8, 1)).unbind()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            torch.dot(left, right)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1e6 * median(times)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _processor() -> str:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Sizes of one core's caches, by name: L1d, L1i, L2, L3."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_text(index / name) for name in ("level", "type", "size"))
        if level and kind and size:
            sizes[f"L{level}{kind[0].lower() if kind in ('Data', 'Instruction') else ''}"] = size
    return sizes


def cache_bytes() -> int:
    """Size of the largest cache; 32 MB where it cannot be read."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [int(text[:-1]) * units[text[-1]] for text in _caches().values() if text[-1] in units]
    return max(sizes, default=32 * 2**20)


def _commit() -> str | None:
    """Of the checkout that the package is in, marked where something was changed since; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(LIBRARY.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not merely installed somewhere below a checkout
        return git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.SubprocessError):
        return None


def _compiler() -> str | None:
    """Compiler of the extension, as it signed the library."""
    if not extension_loaded():
        return None
    binary = LIBRARY.read_bytes()
    for mark in (b"GCC: (", b"clang version "):
        start = binary.find(mark)
        if start >= 0:
            return binary[start : binary.index(b"\0", start)].decode(errors="replace")
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package) if package != "torch" else torch.__version__
    except importlib.metadata.PackageNotFoundError:
        return None
