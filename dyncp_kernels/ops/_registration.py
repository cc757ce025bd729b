"""What every block op registers besides its kernels: the reference where there is no kernel, and autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dyncp_kernels._extension import extension_loaded
from dyncp_kernels.ops import backends
from dyncp_kernels.ops._schemas import SCHEMAS

# A library object unregisters everything when it is collected, so it lives as long as the module.
LIBRARY = torch.library.Library("dyncp", "FRAGMENT")


def register_reference(op: str, implementation: Callable[..., Any]) -> None:
    """Run `dyncp::op` on `implementation` wherever there is no kernel for the device; see `backends` for CUDA."""
    if not extension_loaded():
        LIBRARY.define(op + SCHEMAS[op])
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"dyncp::{op}", "CPU"):
        LIBRARY.impl(op, implementation, "CPU")
    LIBRARY.impl(op, backends.dispatcher(op, implementation), "CUDA")
    backends.show_kernels_to_compile(op, LIBRARY)


def register_plain(op: str, implementation: Callable[..., Any]) -> None:
    """Run `dyncp::op` on `implementation` wherever there is no kernel for the device, CUDA included."""
    if not extension_loaded():
        LIBRARY.define(op + SCHEMAS[op])
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"dyncp::{op}", "CPU"):
        LIBRARY.impl(op, implementation, "CPU")
    LIBRARY.impl(op, implementation, "CUDA")


def refuse_gradient(op: str, instead: str) -> None:
    """Make `dyncp::op` refuse arguments that require a gradient, with a hint at what to use `instead`."""
    overload = getattr(torch.ops.dyncp, op).default

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor) and value.requires_grad:
                    raise RuntimeError(
                        f"{op}: no argument may require a gradient, because the op has none; use {instead}, or "
                        "torch.no_grad() (got a tensor that requires one)"
                    )
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args, **kwargs)

    LIBRARY.impl(op, run, "Autograd")


def register_autocast(op: str, written: int | None = None) -> None:
    """Inside ``torch.autocast`` run `dyncp::op` with its float32, float16 and bfloat16 tensors cast to that dtype.

    The tensor that the op writes to, argument number `written`, keeps its dtype and gets the result.
    """
    overload = getattr(torch.ops.dyncp, op).default
    for device in ("cpu", "cuda"):
        key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")

        def run(*args: Any, _device: str = device, _key: Any = key, **kwargs: Any) -> Any:
            dtype = torch.get_autocast_dtype(_device)
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_key)):
                cast = [_cast(arg, dtype) for arg in args]
                result = overload(*cast, **{name: _cast(value, dtype) for name, value in kwargs.items()})
                if written is not None and cast[written] is not args[written]:
                    args[written].copy_(cast[written])
                return result

        LIBRARY.impl(op, run, f"Autocast{device.upper()}")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_castable = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if is_castable else value
