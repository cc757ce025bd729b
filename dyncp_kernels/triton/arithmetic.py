"""Products, activations and selections that all kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["activate", "multiply", "select", "slope_of"]


@triton.jit
def _dot(a, b, total, WIDEN: tl.constexpr):  # noqa: N803
    """A product of 16-bit operands; WIDEN first makes them float32, which changes no product."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):  # noqa: N803
    """Total + a @ b, accumulated in float32.

    PRECISION is "ieee" or "tf32" for float32 operands.  With "split" (16-bit tensors) two operands of the same 16-bit
    type are multiplied as they are; an operand that is float32, such as an activation inside the block, is cut into
    a sum of two bfloat16 numbers, which keeps 16 of its bits at the speed of the 16-bit units and at full range.
    "split_wide" does the same with products of float32 copies, for the interpreter, whose products of bfloat16 numbers
    are wrong.
    """
    if PRECISION == "ieee" or PRECISION == "tf32":
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    elif a.dtype == b.dtype and a.dtype != tl.float32:
        total = _dot(a, b, total, PRECISION == "split_wide")
    else:
        a_high = a.to(tl.float32).to(tl.bfloat16)
        b_high = b.to(tl.float32).to(tl.bfloat16)
        if a.dtype != tl.bfloat16:
            a_low = (a.to(tl.float32) - a_high.to(tl.float32)).to(tl.bfloat16)
            total = _dot(a_low, b_high, total, PRECISION == "split_wide")
        if b.dtype != tl.bfloat16:
            b_low = (b.to(tl.float32) - b_high.to(tl.float32)).to(tl.bfloat16)
            total = _dot(a_high, b_low, total, PRECISION == "split_wide")
        total = _dot(a_high, b_high, total, PRECISION == "split_wide")
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
