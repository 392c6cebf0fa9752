"""Numbers to cells: rounded, with interval or quartiles, and with what is missing of them."""

from __future__ import annotations

from moge_bench.publish.conditions import state_of
from moge_bench.publish.numbers import Number, Shown
from moge_bench.publish.render import Cell
from moge_bench.study.contrasts import MIN_SAMPLES, Sample

NONE = "-"


def value_cell(number: Number, shown: Shown) -> Cell:
    """Return the value: mean [95 % interval], or median [quartiles]; and what is missing of it."""
    digits = shown.metric.digits
    state = state_of(number.arm)
    if number.sample is None:
        return Cell(f"{NONE} ({state})" if state else NONE)
    text = _number(number.sample.mean, digits)
    if number.quartiles is not None:
        text += _brackets(number.quartiles.lower, number.quartiles.upper, digits)
    elif shown.metric.source != "speed":
        text += _sample_brackets(number.sample, digits)
    return Cell(f"{text} ({state})" if state else text)


def difference_cell(number: Number, shown: Shown) -> Cell:
    """Return the paired difference [95 % interval], bold where it survives the correction."""
    sample = number.difference
    if sample is None:
        return Cell(NONE)
    digits = shown.metric.digits
    text = _number(sample.mean, digits, "+") + _sample_brackets(sample, digits, "+")
    if sample.n < len(number.arm.entry.runs):
        text += f" (n = {sample.n})"
    return Cell(text, number.kept)


def ratio_cell(number: Number) -> Cell:
    """Return the ratio to the baseline."""
    return Cell(NONE if number.ratio is None else _number(number.ratio, 3))


def _sample_brackets(sample: Sample, digits: int, sign: str = "") -> str:
    if sample.n < MIN_SAMPLES or sample.low is None or sample.high is None:
        return ""
    return _brackets(sample.low, sample.high, digits, sign)


def _brackets(low: float, high: float, digits: int, sign: str = "") -> str:
    return f" [{_number(low, digits, sign)}; {_number(high, digits, sign)}]"


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}"
