"""cvt: between integers, floats of 16 to 64 bits, and packed pairs of 16-bit floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx.arithmetic import pure
from tools.ptx.decode import Execute, Form, opcode
from tools.ptx.scalars import DTYPES, PAIRS, Array, flush, from_bfloat16, saturate, to_bfloat16

_TO_INTEGRAL: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip
_FLOATS = ("f16", "bf16", "f32", "f64")


@opcode("cvt")
def _convert(form: Form) -> Execute:
    if len(form.types) != 2:
        raise form.unsupported("cvt without two types")
    target, source = form.types
    if target in PAIRS:
        return _convert_pair(form, target)
    form.count(2)
    function = _conversion(form, target, source)
    read = form.reader(form.operands[1], source, narrow=True)
    write = form.writer(form.operands[0], target, narrow=True)

    def execute(state: Any, lanes: Any) -> None:
        write(state, lanes, function(read(state, lanes)))

    return execute


def _convert_pair(form: Form, target: str) -> Execute:
    """Two float32 to a packed pair; the first operand becomes the upper half."""
    form.one_of("rn")
    form.count(3)
    form.type("f32")
    narrow = to_bfloat16 if target == "bf16x2" else lambda a: a.astype(np.float16).view(np.uint16)

    def join(upper: Array, lower: Array) -> Array:
        wide = [narrow(value).astype(np.uint32) for value in (upper, lower)]
        return wide[0] << np.uint32(16) | wide[1]

    return pure(form, join, form.readers(1, "f32"), "b32")


def _conversion(form: Form, target: str, source: str) -> Callable[[Array], Array]:
    saturated, ftz = form.flag("sat"), form.flag("ftz")
    if ftz and "f32" not in (target, source):
        raise form.unsupported(".ftz without f32")
    if target in _FLOATS and source in _FLOATS:
        return _float_to_float(form, target, source, saturated, ftz)
    if target in _FLOATS:
        form.one_of("rn")  # the only rounding that numpy has for this
        if saturated or target == "bf16":
            raise form.unsupported("this conversion of an integer")
        return lambda a: a.astype(DTYPES[target])
    if source in _FLOATS:
        if source == "bf16":
            raise form.unsupported("bf16 to an integer")
        to_integral = _TO_INTEGRAL[form.one_of(*_TO_INTEGRAL)]
        return lambda a: _float_to_integer(to_integral(flush(a) if ftz else a), target)
    if saturated:
        limits = np.iinfo(DTYPES[target])
        return lambda a: _clamp(a, limits.min, limits.max).astype(DTYPES[target])
    return lambda a: a.astype(DTYPES[target])


def _float_to_float(
    form: Form, target: str, source: str, saturated: bool, ftz: bool
) -> Callable[[Array], Array]:
    integral = [form.flag(name) for name in _TO_INTEGRAL]
    form.flag("rn")
    if saturated and target != "f32":
        raise form.unsupported(f".sat to {target}")
    steps: list[Callable[[Array], Array]] = []
    if source == "bf16":
        steps.append(from_bfloat16)
    if ftz and source == "f32":
        steps.append(flush)
    steps += [f for f, wanted in zip(_TO_INTEGRAL.values(), integral, strict=True) if wanted]
    if target == "bf16":
        if source == "f64":
            raise form.unsupported("f64 to bf16")
        steps += [lambda a: a.astype(np.float32), to_bfloat16]
    else:
        steps.append(lambda a: a.astype(DTYPES[target]))
    if saturated:
        steps.append(saturate)
    if ftz and target == "f32":
        steps.append(flush)

    def convert(values: Array) -> Array:
        for step in steps:
            values = step(values)
        return values

    return convert


def _float_to_integer(values: Array, target: str) -> Array:
    """Saturating; NaN becomes 0, or the lowest bit pattern 1000... where 64 bits take part."""
    dtype = DTYPES[target]
    limits = np.iinfo(dtype)
    wide = values.astype(np.float64)
    low, high = wide <= float(limits.min), wide >= float(limits.max)
    invalid = np.isnan(wide)
    result = np.where(low | high | invalid, 0.0, wide).astype(dtype)
    result = np.where(low, dtype.type(limits.min), result)
    result = np.where(high, dtype.type(limits.max), result)
    if dtype.itemsize == 8 or values.dtype == np.float64:
        lowest = np.array([1 << (8 * dtype.itemsize - 1)], np.uint64)
        result = np.where(invalid, lowest.astype(f"u{dtype.itemsize}").view(dtype), result)
    return result


def _clamp(values: Array, low: int, high: int) -> Array:
    """Limit integers to [low, high], as far as their own type goes beyond it."""
    own = np.iinfo(values.dtype)
    return np.clip(
        values, values.dtype.type(max(low, own.min)), values.dtype.type(min(high, own.max))
    )
