"""Facts about the installation, as rows of text."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch

from dyncp_kernels import __version__
from dyncp_kernels._extension import extension_loaded, instruction_set, supported_instruction_sets

__all__ = ["back_ends", "extras", "implementation", "processor", "versions"]

_EXTRAS = {
    "audio": ("soundfile", "soxr", "safetensors"),
    "cli": ("typer", "rich", "matplotlib"),
    "eval": ("pesq", "pystoi"),
    "bench": ("onnx", "onnxruntime", "openvino"),
}

_NAMES = {"compiled": "compiled kernels", "reference": "PyTorch reference: right but slow, nothing is skipped"}

Rows = list[tuple[str, ...]]


def versions() -> Rows:
    """Versions of this package and of what it stands on."""
    return [
        ("dyncp_kernels", __version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("numpy", importlib.metadata.version("numpy")),
        ("system", platform.platform()),
    ]


def processor() -> Rows:
    """Processor, threads and instruction sets."""
    supported = supported_instruction_sets()
    return [
        ("processor", _processor_name()),
        ("threads", str(torch.get_num_threads())),
        ("instruction set in use", instruction_set()),
        ("also possible (DYNCP_ISA)", ", ".join(name for name in supported if name != instruction_set()) or "none"),
    ]


def implementation(device: str) -> str:
    """What runs the op ``gated_conv`` on ``device`` ("CPU" or "CUDA"): "compiled" or "reference"."""
    lines = torch._C._dispatch_dump("dyncp::gated_conv").splitlines()
    kernel = next((line for line in lines if line.startswith(f"{device}: ")), "")
    return "compiled" if kernel and ".py:" not in kernel else "reference"


def back_ends() -> Rows:
    """Where the op ``gated_conv`` can run, and on what."""
    from dyncp_kernels.ops import backends

    build = "" if extension_loaded() else " (to build the kernels: `pip install . --no-build-isolation`)"
    return [
        ("CPU", f"{_NAMES[implementation('CPU')]}{build}"),
        *((f"CUDA: {name}", f"{summary}; {state}") for name, state, summary in backends.table()),
        (f"choice ({backends.VARIABLE})", f"the first of {', '.join(backends.PREFERENCE)} that is available"),
    ]


def extras() -> Rows:
    """Packages of each extra and their versions."""
    return [(extra, ", ".join(_installed(package) for package in packages)) for extra, packages in _EXTRAS.items()]


def _installed(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} missing"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
