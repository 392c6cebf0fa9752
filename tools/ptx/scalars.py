"""PTX scalar types as numpy dtypes, and the float32 arithmetic that numpy does not have.

Registers hold unsigned integers of their width; an instruction's type says how to look at them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DTYPES: dict[str, np.dtype[Any]] = {"pred": np.dtype(bool), "bf16": np.dtype("u2")}
for _bytes in (1, 2, 4, 8):
    for _letter, _kind in (("b", "u"), ("u", "u"), ("s", "i")):
        DTYPES[f"{_letter}{8 * _bytes}"] = np.dtype(f"{_kind}{_bytes}")
    if _bytes > 1:
        DTYPES[f"f{8 * _bytes}"] = np.dtype(f"f{_bytes}")
# Two 16-bit floats in one 32-bit register, and their type: moved as bits, made by cvt and fma only.
PAIRS = {"f16x2": "f16", "bf16x2": "bf16"}
DTYPES |= dict.fromkeys(PAIRS, np.dtype("u4"))
# Two float32 in one 64-bit register, for add, sub, mul and fma from sm_100 on.
TWO_FLOATS = "f32x2"
DTYPES[TWO_FLOATS] = np.dtype("u8")

WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
_SMALLEST_NORMAL = np.float32(2.0**-126)


def unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the unsigned integer dtype of the same width (bool stays bool)."""
    return dtype if dtype.kind == "b" else np.dtype(f"u{dtype.itemsize}")


def flush(values: Array) -> Array:
    """Return float32 ``values`` with subnormals replaced by a zero of their sign (.ftz)."""
    tiny = np.abs(values) < _SMALLEST_NORMAL
    return np.where(tiny, np.copysign(np.float32(0), values), values)


def saturate(values: Array) -> Array:
    """Return float32 ``values`` limited to [0, 1], with 0 for NaN (.sat)."""
    return np.fmin(np.fmax(values, np.float32(0)), np.float32(1))


def fma32(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c of float32 arrays, rounded once, to nearest.

    The product is exact in float64. The sum is not, so rounding it again to float32 errs when it
    lies on a tie; there, and where the result may be subnormal, it is rounded to odd first.
    """
    product = a.astype(np.float64) * b
    total = product + c
    dropped = total.view(np.int64) & 0x1FFFFFFF  # the bits float32 does not keep
    risky = (dropped == 0x10000000) | (np.abs(total) < 2.0**-125)
    if risky.any():
        total = np.where(risky, _to_odd(product, c, total), total)
    return total.astype(np.float32)


def fma32_down(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c of float32 arrays, rounded once, towards minus infinity."""
    product = a.astype(np.float64) * b
    total = _to_odd(product, c, product + c)
    nearest = total.astype(np.float32)
    return np.where(nearest > total, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def add32_to_zero(a: Array, b: Array) -> Array:
    """Return a + b of float32 arrays, rounded once, towards zero."""
    wide = a.astype(np.float64)
    total = _to_odd(wide, b, wide + b)
    nearest = total.astype(np.float32)
    return np.where(abs(nearest) > abs(total), np.nextafter(nearest, np.float32(0)), nearest)


def _to_odd(product: Array, c: Array, total: Array) -> Array:
    """``total``, the rounded sum of ``product`` and ``c``, rounded to odd instead.

    Of the two float64 around an inexact sum that with an odd last bit, from which rounding to
    float32 gives what rounding the exact sum would (Boldo and Melquiond, 2008).
    """
    addend = np.broadcast_to(c, total.shape).astype(np.float64)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    inexact = np.isfinite(error) & (error != 0)
    return np.where(even & inexact, np.nextafter(total, towards), total)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c of float64 arrays, rounded once: exact rationals, a lane at a time."""
    a, b, c = np.broadcast_arrays(a, b, c)
    result = a * b + c
    for lane in np.flatnonzero(np.isfinite(result)):
        exact = Fraction(float(a[lane])) * Fraction(float(b[lane])) + Fraction(float(c[lane]))
        if exact:  # else it is a zero with the right sign already
            result[lane] = float(exact)
    return result


def from_bfloat16(bits: Array) -> Array:
    """Return the float32 values of bfloat16 bit patterns (uint16)."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(values: Array) -> Array:
    """Return the bfloat16 bit patterns (uint16) nearest to float32 ``values``, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def fma16(kind: str, a: Array, b: Array, c: Array) -> Array:
    """Return the bits of a * b + c, rounded once to ``kind``, of the bits of its operands.

    ``kind`` is "f16" or "bf16". The product is exact in float64 and the sum is rounded to odd
    there, so that the second rounding is that of the exact sum.
    """
    x, y, z = (_from_half(bits, kind).astype(np.float64) for bits in (a, b, c))
    with np.errstate(invalid="ignore", over="ignore"):
        total = _to_odd(x * y, z, x * y + z)
        if kind == "f16":
            rounded = total.astype(np.float16).view(np.uint16)
            return np.where(np.isnan(total), np.uint16(0x7FFF), rounded)
        _, exponent = np.frexp(np.where(np.isfinite(total), total, 0))
        step = np.ldexp(1.0, np.maximum(exponent - 8, -133))  # of bfloat16 there, 8 digits
        return to_bfloat16((np.rint(total / step) * step).astype(np.float32))


def _from_half(bits: Array, kind: str) -> Array:
    return from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16)
