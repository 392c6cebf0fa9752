"""What a measurement returns, and the random permutations that all of them compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from pydantic import FiniteFloat

from moge_bench.config import Frozen

NUM_PERMUTATIONS = 499  # the smallest p is 1/500
_DIGITS = 6  # significant ones: the last bits of a sum differ between processors


class Number(Frozen):
    """One number.

    Attributes:
        name: its first word is the measurement's: "topography_load_moran".
        unit: "" for pure numbers.
        block: of the MoE layer; None where it is of the whole run.
        at: a point on a curve: "shift_2", "distance_1", "after_50"; None for what a table shows.
    """

    name: str
    value: FiniteFloat
    unit: str = ""
    block: int | None = None
    at: str | None = None


def number(name: str, value: float, unit: str = "", at: str | None = None) -> list[Number]:
    """Return [the number], rounded; [] for NaN and infinity, which stand for "not defined"."""
    if not math.isfinite(value):
        return []
    return [Number(name=name, value=float(f"{value:.{_DIGITS}g}"), unit=unit, at=at)]


def of_block(block: int, numbers: Iterable[Number]) -> list[Number]:
    """Return ``numbers`` as those of one MoE layer."""
    return [found.model_copy(update={"block": block}) for found in numbers]


def permuted_values(
    statistic: Callable[[np.ndarray], float], size: int, count: int = NUM_PERMUTATIONS
) -> np.ndarray:
    """Return ``statistic`` of ``count`` random permutations of ``size`` places: (count,) float64.

    The permutations are the same for every run.
    """
    generator = np.random.default_rng(0)
    return np.array([statistic(generator.permutation(size)) for _ in range(count)])


def p_at_least(value: float, permuted: np.ndarray) -> float:
    """Return the one-sided p of a value as large as ``value``, that of the data counted in.

    (1 + number of permutations that reach it) / (1 + permutations): Phipson and Smyth, "Permutation
    P-values should never be zero" (2010). NaN where the value is not defined.
    """
    if not math.isfinite(value):
        return math.nan
    reach = np.sum(permuted >= value - 1e-12 * max(1.0, abs(value)))
    return float((1 + reach) / (1 + len(permuted)))


def nan_mean(values: np.ndarray) -> float:
    """Return the mean of what is defined; NaN, without a warning, where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan
