"""The native extension: loading it, and what to do without it."""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).resolve().parent / "_C.abi3.so"
_TEXT_SIZE = 512

_library: ctypes.CDLL | None = None
_load_error: str | None = None


def _load() -> None:
    global _library, _load_error
    if not LIBRARY.exists():
        _load_error = f"{LIBRARY.name} was not built"
        return
    try:
        torch.ops.load_library(str(LIBRARY))
        _library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        _load_error = str(error)


def extension_loaded() -> bool:
    """True when the ops run on the compiled kernels, False when they run on the PyTorch reference."""
    return _library is not None


def warn_when_missing() -> None:
    """Say once, and how to change it, that the ops run on the slow reference."""
    if _library is None:
        warnings.warn(
            f"dyncp_kernels: the native extension is not there ({_load_error}), so its ops run on the slow PyTorch "
            "reference. To build it, install a C++ compiler and run `pip install . --no-build-isolation` in the "
            "source folder, in the environment that has torch.",
            RuntimeWarning,
            stacklevel=3,
        )


def _call(name: str, *arguments: bytes) -> str:
    assert _library is not None
    text = ctypes.create_string_buffer(_TEXT_SIZE)
    if getattr(_library, name)(*arguments, text, _TEXT_SIZE) != 0:
        raise RuntimeError(text.value.decode())
    return text.value.decode()


def frame_call(name: str) -> Callable[..., torch.Tensor | None] | None:
    """A function of csrc/torch/stream_calls.cpp for Python: (packed, state, values, out, shift), where out may be None.

    It gives the output, or None when the arguments are not plain float32 tensors on the CPU of fitting shapes.
    There is none without the extension, or where the package was built without Python's headers.
    """
    if _library is None:
        return None
    try:
        module: Any = importlib.import_module("dyncp_kernels._frame_call")
    except (ImportError, AttributeError):
        return None
    address = ctypes.cast(getattr(_library, name), ctypes.c_void_p).value
    return module.function(address)


def instruction_set() -> str:
    """Name of the instruction set that the kernels use; "none" without the extension.

    One of portable, avx2, avx512, avx512vnni, amx, neon and neondot.

    Raises:
        RuntimeError: the environment variable DYNCP_ISA names a set that this processor or build lacks.
    """
    return _call("dyncp_instruction_set") if extension_loaded() else "none"


def supported_instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this build holds and this processor runs, narrowest first; empty without extension."""
    return tuple(_call("dyncp_supported_instruction_sets").split(",")) if extension_loaded() else ()


def set_instruction_set(name: str) -> None:
    """Use another instruction set from now on, in this process; meant for tests and measurements.

    Raises:
        RuntimeError: this processor or build lacks the set, or there is no extension.
    """
    if not extension_loaded():
        raise RuntimeError(f"set_instruction_set: the native extension must be there (got {_load_error})")
    _call("dyncp_set_instruction_set", name.encode())


def set_offline_strategy(name: str) -> None:
    """Force how ``gated_conv`` takes channels that are open at few frames, in this process; for tests and measurements.

    Args:
        name: ``tile`` computes them at all frames of a tile, ``frames`` at each open frame alone, ``automatic`` (the
            default) takes what costs less for each tile.

    Raises:
        RuntimeError: there is no such strategy, or no extension.
    """
    if not extension_loaded():
        raise RuntimeError(f"set_offline_strategy: the native extension must be there (got {_load_error})")
    _call("dyncp_set_offline_strategy", name.encode())


_load()
