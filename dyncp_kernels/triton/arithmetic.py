"""Products, activations and selections that all kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["activate", "multiply", "select", "slope_of"]


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):  # noqa: N803
    """Total + a @ b, accumulated in float32.

    PRECISION is "ieee" or "tf32" for float32 operands, and "short" for those of a 16-bit type, to which b is rounded
    first; "short_wide" does the same with products of float32 copies, for the interpreter, whose products of bfloat16
    numbers are wrong.
    """
    if PRECISION == "short":
        total = tl.dot(a, b.to(a.dtype), total)
    elif PRECISION == "short_wide":
        total = tl.dot(a.to(tl.float32), b.to(a.dtype).to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    return total


@triton.jit
def slope_of(slope, HAS_SLOPE: tl.constexpr):  # noqa: N803
    """The PReLU slope as a float32 scalar, 0 for ReLU."""
    if HAS_SLOPE:
        return tl.load(slope).to(tl.float32)
    else:
        return tl.full([], 0.0, tl.float32)


@triton.jit
def activate(value, slope, HAS_SLOPE: tl.constexpr):  # noqa: N803
    """PReLU, or ReLU without a slope; NaN stays NaN."""
    if HAS_SLOPE:
        return tl.where(value > 0, value, slope * value)
    else:
        return tl.where(value < 0, 0.0, value)


@triton.jit
def select(value, gate):
    """Gate times value, and exactly 0 where the gate is 0, whatever the value; a boolean gate only selects."""
    if gate.dtype.is_floating():
        factor = gate.to(tl.float32)
        return tl.where(factor != 0, factor * value, 0.0)
    else:
        return tl.where(gate != 0, value, 0.0)
