"""Contrasts that a study file declares: ``primary``, before anything runs, and ``secondary``.

A declared contrast is a weighted sum over cells. A cell is a pair of arms that differ in the value
of one axis alone; what its arms do seed by seed, subtracted, is its difference. The weights make
of the cells a mean, a slope over a numeric axis, or a difference between two values of an axis.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, field_validator

from moge_bench.config import Frozen
from moge_bench.metrics import METRICS, Metric
from moge_bench.study.names import canonical, check_name, coordinates_key, find_value

# Of a trend's scale: the word for one step of it, and the function that makes steps equal.
STEPS: dict[str, tuple[str, Callable[[float], float]]] = {
    "log2": ("doubling", math.log2),
    "log10": ("tenfold", math.log10),
    "linear": ("unit", float),
}


class DeclaredContrast(Frozen):
    """What is compared with what, in which number, and what would be too small to matter."""

    metric: str
    contrast: tuple[Any, Any] = Field(description="two values of `axis`: an arm, its baseline")
    margin: float = Field(gt=0, description="in the unit of the contrast: points, percent")
    split: str = Field("test", description="where the metric is read, if it is of an evaluation")
    axis: str = Field("method", description="the axis whose values are compared")
    at: dict[str, tuple[Any, ...]] = Field({}, description="values of other axes; else all count")
    over: str | None = Field(None, description="a trend: how the difference moves with this axis")
    scale: Literal["log2", "log10", "linear"] = Field("log2", description="of the slope over it")
    between: tuple[Any, Any] | None = Field(
        None, description="two values of `over`: the difference at the first less at the second"
    )

    @field_validator("at", mode="before")
    @classmethod
    def _one_or_many(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {a: v if isinstance(v, list | tuple) else (v,) for a, v in values.items()}

    @property
    def number(self) -> Metric:
        """The metric itself."""
        return METRICS[self.metric]

    @property
    def where(self) -> str:
        """The split, or "" where the metric is of the run as a whole."""
        return self.split if self.number.source == "evaluation" else ""

    @property
    def unit(self) -> str:
        """The unit of the contrast and its margin: "points per doubling of experts"."""
        if self.over is None or self.between is not None:
            return self.number.contrast_unit
        return f"{self.number.contrast_unit} per {STEPS[self.scale][0]}".strip()


@dataclass(frozen=True)
class Pair:
    """A cell: two arms, where in the grid they stand, and the value of ``over`` there."""

    at: dict[str, Any]
    arm_id: str
    baseline_id: str
    level: Any = None


class HasCoordinates(Protocol):
    """An arm of a grid or of a manifest."""

    @property
    def arm_id(self) -> str:
        """Its name."""

    @property
    def coordinates(self) -> tuple[dict[str, Any], ...]:
        """Every combination of axis values that is this arm."""


def find_pairs(
    declared: DeclaredContrast, axes: Mapping[str, Sequence[Any]], arms: Sequence[HasCoordinates]
) -> list[Pair]:
    """Return the cells, in the order of the grid, each pair of arms once.

    There is none where the two arms are one (dense, whatever the number of experts), where ``over``
    makes no difference to either, and where a combination is skipped.
    """
    field = declared.axis
    own, other = (find_value("contrast", field, v, axes[field]) for v in declared.contrast)
    by_place = {coordinates_key(c): arm.arm_id for arm in arms for c in arm.coordinates}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for arm in arms:
        for coordinates in arm.coordinates:
            if coordinates[field] != own or not _counts(coordinates, declared):
                continue
            baseline = by_place.get(coordinates_key({**coordinates, field: other}))
            if baseline is None or baseline == arm.arm_id:
                continue
            places = found.setdefault((arm.arm_id, baseline), [])
            places.append({axis: v for axis, v in coordinates.items() if axis != field})
    pairs = []
    for (arm_id, baseline), places in found.items():
        at = {a: v for a, v in places[0].items() if all(each[a] == v for each in places)}
        if declared.over is None or declared.over in at:
            pairs.append(Pair(at, arm_id, baseline, at.get(declared.over or "")))
    return pairs


def _counts(coordinates: Mapping[str, Any], declared: DeclaredContrast) -> bool:
    """Return whether a combination of axis values is among those that the contrast is of."""
    wanted = {axis: [canonical(v) for v in values] for axis, values in declared.at.items()}
    if declared.over is not None and declared.between is not None:
        wanted[declared.over] = [canonical(value) for value in declared.between]
    return all(canonical(coordinates[axis]) in values for axis, values in wanted.items())


def weigh(declared: DeclaredContrast, pairs: Sequence[Pair]) -> list[float] | None:
    """Return the weight of each cell; None where the cells cannot make up the contrast.

    Of a mean 1 / m. Of a slope (x - mean x) / sum (x - mean x)^2, that of least squares. Of a
    difference 1 / m of the first value's cells and -1 / m of the second's.
    """
    if not pairs:
        return None
    if declared.over is None:
        return [1 / len(pairs)] * len(pairs)
    if declared.between is not None:
        first = [canonical(pair.level) == canonical(declared.between[0]) for pair in pairs]
        if all(first) or not any(first):
            return None
        counts = {True: sum(first), False: len(pairs) - sum(first)}
        return [(1 if is_first else -1) / counts[is_first] for is_first in first]
    _, function = STEPS[declared.scale]
    x = np.array([function(pair.level) for pair in pairs])
    centred = x - x.mean()
    square = float(centred @ centred)
    return [float(each) / square for each in centred] if square > 0 else None


def check_declared(
    field: str, declared: DeclaredContrast, axes: Mapping[str, Sequence[Any]],
    metrics: Sequence[str], splits: Sequence[str],
) -> None:  # fmt: skip
    """Raise ValueError naming what is wrong in ``field``, with the nearest that would be right."""
    check_name(f"{field}.metric", "metric", declared.metric, tuple(METRICS))
    paired = [name for name, metric in METRICS.items() if metric.paired]
    if declared.metric not in paired:
        raise ValueError(
            f"{field}.metric: {declared.metric} is measured once an arm or tells a cost, and is "
            f"not compared seed by seed; these are: {', '.join(paired)}"
        )
    if declared.metric not in metrics:
        raise ValueError(
            f"{field}.metric: {declared.metric} is not among table.metrics, {list(metrics)}"
        )
    if declared.where and declared.where not in splits:
        raise ValueError(
            f"{field}.split: {declared.where} is not among table.splits, {list(splits)}; "
            f"write split: {splits[0]}"
        )
    check_name(f"{field}.axis", "axis", declared.axis, tuple(axes))
    for value in declared.contrast:
        find_value(f"{field}.contrast", declared.axis, value, axes[declared.axis])
    if canonical(declared.contrast[0]) == canonical(declared.contrast[1]):
        raise ValueError(f"{field}.contrast: {declared.contrast[0]!r} is compared with itself")
    for axis, values in declared.at.items():
        check_name(f"{field}.at", "axis", axis, tuple(axes))
        for value in values:
            find_value(f"{field}.at", axis, value, axes[axis])
    if declared.axis in declared.at:
        raise ValueError(f"{field}.at: {declared.axis} is what is compared; `contrast` names it")
    _check_over(field, declared, axes)


def _check_over(field: str, declared: DeclaredContrast, axes: Mapping[str, Sequence[Any]]) -> None:
    set_fields = declared.model_fields_set
    if declared.over is None:
        for name in {"scale", "between"} & set_fields:
            raise ValueError(f"{field}.{name}: it needs `over`, the axis that it is of")
        return
    check_name(f"{field}.over", "axis", declared.over, tuple(axes))
    if declared.over == declared.axis:
        raise ValueError(f"{field}.over: {declared.over} is what is compared; name another axis")
    values = axes[declared.over]
    if declared.between is not None:
        if "scale" in set_fields:
            raise ValueError(f"{field}: scale is of a slope, between of a difference; keep one")
        for value in declared.between:
            find_value(f"{field}.between", declared.over, value, values)
        return
    least = 0.0 if declared.scale != "linear" else -math.inf
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= least:
            wanted = "numbers" if declared.scale == "linear" else "numbers above 0"
            raise ValueError(
                f"{field}.over: a slope needs {wanted}, {declared.over} has {value!r}; "
                "`between` compares two values"
            )


def check_pairs(
    field: str, declared: DeclaredContrast, axes: Mapping[str, Sequence[Any]],
    arms: Sequence[HasCoordinates],
) -> None:  # fmt: skip
    """Raise ValueError if the grid has no cells that make up the contrast."""
    if weigh(declared, find_pairs(declared, axes, arms)) is None:
        first, second = declared.contrast
        missing = f" at two values of {declared.over}" if declared.over else ""
        raise ValueError(
            f"{field}: the grid has no two arms that differ in {declared.axis} alone, {first!r} "
            f"and {second!r}{missing}"
        )


def digest_of(parts: Iterable[Any]) -> str:
    """Return the first 16 hex digits of the SHA-256 of ``parts`` as canonical JSON."""
    text = json.dumps(list(parts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
