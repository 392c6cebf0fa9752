"""The dose of a whole run, from the points of its curve (dose.py measures them)."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median


def curve_name(term: str, block: int) -> str:
    """Return what the curve of a term's dose at the gate of ``block`` is called."""
    return f"dose_{term}_block{block}"


def typical_dose(points: Iterable[tuple[str, float]], block: int) -> float:
    """Return the dose of a run's own loss at a block's gate: the median over its measurements.

    ``points`` are (name of the curve, value). The loss is the group loss or the regularizer; 0 in a
    run that has neither, as plain MoE. The median, since the first point is of a network that
    nothing has trained yet: there the task hardly pulls at the gate, and the ratio is several times
    that of the training.
    """
    names = {curve_name("group", block), curve_name("regularizer", block)}
    values = [value for name, value in points if name in names]
    return median(values) if values else 0.0
