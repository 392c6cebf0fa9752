"""How a study becomes a picture: which axis is x, what is a colour, what is a panel.

x is the numeric axis with the most values, if one has three; else the first axis that is not the
method; else the method. The method is the colour. Every other axis is a panel, but for one whose
value x decides, as where lambda rises with the number of experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moge_bench.methods import METHODS
from moge_bench.publish.layout import Key, axis_title, key_label, lay_out
from moge_bench.study.frame import ANY, Arm, Results

_LOG_FROM = 4.0  # the largest value over the smallest, from which x is logarithmic


@dataclass(frozen=True)
class Place:
    """Where an arm stands in a panel. ``everywhere``: x makes no difference to it."""

    x: float
    text: str
    arm: Arm
    everywhere: bool


@dataclass(frozen=True)
class Panel:
    """The arms that share a picture's frame."""

    title: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Design:
    """x as positions: the values from 0 up, arms that x makes no difference to below 0."""

    x: str
    x_title: str
    numeric: bool
    ticks: tuple[tuple[float, str], ...]
    methods: tuple[str, ...]
    panels: tuple[Panel, ...]


def design(results: Results) -> Design:
    """Return the design of a study's pictures, of its arms that have a finished run."""
    axes = results.study.axes
    arms = [arm for arm in results.arms if arm.records]
    order = (*results.study.table.rows, *results.study.table.columns)
    x = _x_axis(results, order)
    facets = [a for a in order if a not in (x, "method") and not _follows(results.arms, a, x)]
    columns = [x] if x == "method" or "method" not in axes else [x, "method"]
    layout = lay_out(arms, axes, facets, columns)
    methods = tuple(dict.fromkeys(arm.method for arm in arms))
    positions, log = _positions(axes[x])
    absent = dict.fromkeys(column for column in layout.columns if column[0] == ANY)
    slots = {column: i - len(absent) - 0.2 for i, column in enumerate(absent)}
    ticks = [(slots[c], c[1] if len(c) > 1 else "any") for c in absent]
    shown = {text for text, *_ in layout.columns}
    ticks += [(at, text) for text, at in positions.items() if text in shown]
    panels = tuple(
        Panel(
            key_label(facets, row) if facets else "",
            tuple(_place(layout.arms[row, c], c, slots, positions) for c in layout.columns
                  if (row, c) in layout.arms),
        )
        for row in layout.rows
    )  # fmt: skip
    title = axis_title(x) + (" (log scale)" if log else "")
    return Design(x, title, _is_numeric(axes[x]), tuple(ticks), methods, panels)


def _place(arm: Arm, column: Key, slots: dict[Key, float], positions: dict[str, float]) -> Place:
    if column in slots:
        return Place(slots[column], column[0], arm, everywhere=True)
    return Place(positions[column[0]], column[0], arm, everywhere=False)


def _x_axis(results: Results, order: Sequence[str]) -> str:
    others = [axis for axis in order if axis != "method"]
    if not others:
        return "method"
    axes = results.study.axes
    numeric = [axis for axis in others if _is_numeric(axes[axis]) and len(axes[axis]) > 2]
    return max(numeric, key=lambda axis: len(axes[axis])) if numeric else others[0]


def _follows(arms: Sequence[Arm], axis: str, x: str) -> bool:
    """Say whether each value of x has one value of the axis alone, in all arms of the study."""
    values: dict[str, set[str]] = {}
    for arm in arms:
        for at in arm.entry.coordinates:
            values.setdefault(str(at[x]), set()).add(str(at[axis]))
    return x != "method" and all(len(found) == 1 for found in values.values())


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _positions(values: Sequence[Any]) -> tuple[dict[str, float], bool]:
    """Return text -> position, 0 to len - 1, on the values' own scale, and whether that is log."""
    if not _is_numeric(values) or len(values) < 3:
        return {str(value): float(i) for i, value in enumerate(values)}, False
    low, high = min(values), max(values)
    log = low > 0 and high / low >= _LOG_FROM
    scaled = [math.log(value) if log else float(value) for value in values]
    unit = (len(values) - 1) / (max(scaled) - min(scaled))
    return {str(v): (s - min(scaled)) * unit for v, s in zip(values, scaled, strict=True)}, log


def dodge(plan: Design, method: str) -> float:
    """Return by how much a method's marks stand beside the others' at one value of x."""
    if plan.x == "method":
        return 0.0
    beside = {p.arm.method: None for panel in plan.panels for p in panel.places if not p.everywhere}
    order = [name for name in plan.methods if name in beside]
    step = min(0.2, 0.6 / len(order))
    return step * (order.index(method) - (len(order) - 1) / 2)


def colour(arm: Arm) -> str:
    """Return the colour of the arm's method."""
    return METHODS[arm.method].colour
