"""Back-ends of the block ops for CUDA tensors, and the choice between them.

The choice, for each call: the name given to :func:`use` if any; else the environment variable
``DYNCP_CUDA_BACKEND``; else the first of ``PREFERENCE`` that is available and knows the dtype.  float64 always runs on
the reference.  A back-end that is named but cannot run is an error that says why.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dyncp_kernels._tf32 import tf32_allowed
from dyncp_kernels.ops._checks import check_block, check_grad

__all__ = ["BACKENDS", "PREFERENCE", "VARIABLE", "Backend", "chosen", "table", "use"]

VARIABLE = "DYNCP_CUDA_BACKEND"
CUDA_LIBRARY = Path(__file__).resolve().parent.parent / "_C_cuda.abi3.so"

# Triton first: torch.compile sees its kernels, and they cover all sizes.
PREFERENCE = ("triton", "cuda", "reference")

# Ops that the back-ends have kernels for; any other op runs on its reference.
_OPS = ("gated_conv", "gated_conv_backward", "gated_conv_step", "gated_conv_step_")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_forced: str | None = None
# Tensors of this device are traced through to the Triton kernels; tests without a GPU change it.
_traced_device = "cuda"


@dataclass(frozen=True)
class Backend:
    """One way to run the block ops on CUDA tensors.

    Attributes:
        name: what :func:`use` and ``DYNCP_CUDA_BACKEND`` call it.
        summary: what it is, in a few words.
        unavailable: gives the reason why it cannot run in this process, or None.
        implementation: gives the function that runs an op; same arguments as the op.
    """

    name: str
    summary: str
    unavailable: Callable[[], str | None]
    implementation: Callable[[str], Callable[..., Any] | None]


@cache
def _triton_unavailable() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed: pip install 'dyncp_kernels[triton]'"
    return None


@cache
def _cuda_unavailable() -> str | None:
    if not CUDA_LIBRARY.exists():
        return f"{CUDA_LIBRARY.name} was not built: needs nvcc and DYNCP_CUDA=1 when the package is built"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        # The loader's own words, which say what is missing, without where the package lies.
        return str(error.__cause__ or error).replace(f"{CUDA_LIBRARY.parent}/", "")
    return None


def triton_implementation(op: str) -> Callable[..., Any]:
    """The op on the Triton kernels."""
    from dyncp_kernels.triton.gated_conv import gated_conv
    from dyncp_kernels.triton.gated_conv_backward import gated_conv_backward
    from dyncp_kernels.triton.gated_conv_step import gated_conv_step, gated_conv_step_

    functions: dict[str, Callable[..., Any]] = {
        "gated_conv": gated_conv,
        "gated_conv_backward": gated_conv_backward,
        "gated_conv_step": gated_conv_step,
        "gated_conv_step_": gated_conv_step_,
    }
    return functions[op]


def _cuda_implementation(op: str) -> Callable[..., Any]:
    overload = getattr(torch.ops.dyncp_cuda, op).default
    if "step" in op:
        return overload

    def run(*args: Any, **options: Any) -> Any:
        return overload(*args, **options, allow_tf32=tf32_allowed())

    return run


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("triton", "Triton kernels, compiled when first used", _triton_unavailable, triton_implementation),
        Backend("cuda", "CUDA C++ kernels, compiled with the package", _cuda_unavailable, _cuda_implementation),
        Backend("reference", "plain PyTorch, slow", lambda: None, lambda op: None),
    )
}


@contextmanager
def use(name: str | None) -> Iterator[None]:
    """Run the ops on the back-end `name` inside the ``with`` block; None restores the automatic choice.

    Raises:
        ValueError: there is no such back-end.
    """
    global _forced
    if name is not None:
        _known(name, "use")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _known(name: str, source: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"{source}: the back-end must be one of {', '.join(BACKENDS)} (got {name!r})")
    return BACKENDS[name]


def chosen(dtype: torch.dtype = torch.float32) -> str:
    """The back-end that a call on CUDA tensors of `dtype` runs on.

    Raises:
        ValueError: ``DYNCP_CUDA_BACKEND`` names no back-end.
        RuntimeError: the back-end that was asked for cannot run here.
    """
    if dtype not in _DTYPES:
        return "reference"
    name = _forced or os.environ.get(VARIABLE) or None
    if name is None:
        return next(candidate for candidate in PREFERENCE if BACKENDS[candidate].unavailable() is None)
    reason = _known(name, VARIABLE if _forced is None else "use").unavailable()
    if reason is not None:
        raise RuntimeError(f"{VARIABLE}: the back-end {name} must be able to run here (got: {reason})")
    return name


def table() -> list[tuple[str, str, str]]:
    """For each back-end: its name, whether it runs in this process or why not, and what it is."""
    return [(backend.name, backend.unavailable() or "available", backend.summary) for backend in BACKENDS.values()]


def _checked(op: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """The positional arguments, with the slopes that the caller left out, after the checks."""
    leading = 1 if op == "gated_conv" else 2
    tensors = args[leading:] + (None,) * (10 - len(args[leading:]))
    block_options = {name: value for name, value in options.items() if name != "wanted"}
    causal = {"causal": True, "residual": True, "dilation": 1} | block_options
    if op == "gated_conv_backward":
        check_block(op, args[1], *tensors, **causal)
        check_grad(op, args[0], args[1], tensors[6])
    else:
        check_block(op, args[0], *tensors, **causal, history=args[1] if leading == 2 else None)
    return args[:leading] + tensors


def dispatcher(op: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """The implementation of `dyncp::op` for CUDA tensors: runs each call on the back-end that is chosen."""
    if op not in _OPS:
        return reference

    def run(*args: Any, **options: Any) -> Any:
        name = chosen(args[0].dtype)
        implementation = BACKENDS[name].implementation(op)
        if implementation is None:
            return reference(*args, **options)
        from torch._library.triton import set_wrap_triton_enabled

        args = _checked(op, args, options)
        with torch.cuda.device(args[0].device), set_wrap_triton_enabled(False):
            return implementation(*args, **options)

    return run


@cache
def _digest_of_sources() -> str:
    """Of everything that decides what a call is traced to."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted([*package.glob("triton/*.py"), *package.glob("ops/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Fingerprint:
    """Stands for the kernels of an op where torch.compile makes the keys of its caches on disk.

    Those would not notice other kernels, or another choice of back-end, from one process to the next.
    """

    __name__ = "dyncp_kernels"

    @staticmethod
    def fn() -> None:
        """Calls nothing whose source would belong to the key, too."""

    @property
    def src(self) -> str:
        wish = _forced or os.environ.get(VARIABLE) or ""
        available = [name for name, backend in BACKENDS.items() if backend.unavailable() is None]
        return " ".join([_digest_of_sources(), wish, *available])


def show_kernels_to_compile(op: str, library: torch.library.Library) -> None:
    """Let torch.compile trace through `dyncp::op` to its Triton kernels where it would run on them.

    Otherwise, on CPU tensors or with another back-end, the op stays one opaque node of the graph.
    """
    if op not in _OPS or op.endswith("_"):
        return
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    def trace(mode: Any, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        options = kwargs or {}
        if args[0].device.type != _traced_device or chosen(args[0].dtype) != "triton":
            return mode.__torch_dispatch__(function, types, args, options)
        with mode:
            return triton_implementation(op)(*_checked(op, args, options), **options)

    torch.library.register_torch_dispatch(f"dyncp::{op}", FunctionalTensorMode, trace, lib=library)
    # Where torch.library.triton_op would put them; a torch without it has no such cache.
    from torch._library import triton as triton_ops

    getattr(triton_ops, "triton_ops_to_kernels", {})[f"dyncp::{op}"] = [_Fingerprint()]
