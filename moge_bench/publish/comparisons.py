"""What the figure of an answer compares: pairs of arms in one metric, the declared ones first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moge_bench.publish.layout import axis_title, key_label
from moge_bench.publish.numbers import Shown
from moge_bench.publish.sentences import (
    NOTHING_DECLARED,
    axis_value,
    place,
    quantity,
    sample_cell,
    seeds,
    subject,
    verdict_words,
)
from moge_bench.study.answer import Answer
from moge_bench.study.contrasts import Contrast, Scale
from moge_bench.study.declared import DeclaredContrast
from moge_bench.study.estimate import estimate
from moge_bench.study.frame import ANY, Arm, Results
from moge_bench.study.verdicts import Tested

MINUS = "\N{MINUS SIGN}"
Kind = Literal["primary", "cell", "secondary", "other"]
_MAX_SPLITS = 2


@dataclass(frozen=True)
class Comparison:
    """One difference: of ``arm``, the colour, from another.

    ``kind``: the primary contrast, one of its cells, a secondary one, or any other arm and its
    baseline. ``margin`` in the unit of the contrast and ``verdict`` are of declared ones.
    ``label`` says all, ``series`` what it is along an axis.
    """

    arm: Arm
    label: str
    series: str
    kind: Kind
    contrast: Contrast | None
    margin: float | None = None
    verdict: str = ""


def headline(answer: Answer) -> str:
    """Return the verdict with its number, short enough for the title of a figure."""
    if answer.primary is None:
        return NOTHING_DECLARED
    found, declared = answer.primary.found, answer.primary.found.declared
    words = verdict_words(answer.primary).capitalize()
    words += "" if found.complete else ", provisional"
    if found.contrast is None:
        return f"{words}: {subject(declared)} in {quantity(declared)}, no seed has both arms"
    text = sample_cell(found.contrast.sample, declared)
    return f"{words}: {subject(declared)}, {text} {quantity(declared)}, n = {seeds(found)}"


def answered_in(answer: Answer, numbers: Sequence[Shown]) -> list[Shown]:
    """Return the metric of the figure: the declared one, or the first that runs are compared in.

    Of a study that declares none, on two splits at most, those of the test data first.
    """
    compared = [shown for shown in numbers if shown.metric.paired]
    if answer.primary is not None:
        declared = answer.primary.found.declared
        wanted = (declared.metric, declared.where)
        return [shown for shown in compared if (shown.metric.name, shown.split) == wanted]
    first = next((s for s in compared if s.metric.kind == "quality"), next(iter(compared), None))
    found = [shown for shown in compared if first and shown.metric.name == first.metric.name]
    tested = [shown for shown in found if shown.split.startswith("test")]
    return (tested or found)[:_MAX_SPLITS]


def bounds(declared: DeclaredContrast) -> tuple[float, float]:
    """Return the least and the largest contrast within the margin, as they are told."""
    scale = Scale(declared.number.compared == "ratio")
    inner = scale.inner(declared.margin)
    return scale.told(-inner), scale.told(inner)


def same_number(tested: Tested, shown: Shown) -> bool:
    """Return whether a declared contrast is of the metric and split of a figure."""
    declared = tested.found.declared
    return (declared.metric, declared.where) == (shown.metric.name, shown.split)


def listed(answer: Answer, shown: Shown) -> list[Comparison]:
    """Return every comparison in ``shown``: primary and its cells, secondary, all others.

    A slope has another unit and is not among them. No pair of arms stands twice.
    """
    results = answer.results
    arms = {arm.entry.arm_id: arm for arm in results.arms}
    found: list[Comparison] = []
    drawn: set[tuple[str, str]] = set()
    declared: list[tuple[Kind, Tested]] = []
    if answer.primary is not None:
        declared.append(("primary", answer.primary))
    declared += [("secondary", each) for each in answer.secondary]
    for kind, tested in declared:
        if not same_number(tested, shown) or tested.found.declared.unit != shown.difference_unit:
            continue
        cells = tested.found.cells
        found.append(_declared(arms[cells[0].pair.arm_id], kind, tested))
        if len(cells) == 1:
            drawn.add((cells[0].pair.arm_id, cells[0].pair.baseline_id))
        if kind == "primary" and len(cells) > 1:
            for cell in cells:
                drawn.add((cell.pair.arm_id, cell.pair.baseline_id))
                text = f"at {place(cell)}"
                found.append(Comparison(arms[cell.pair.arm_id], text, text, "cell", cell.contrast))
    for arm_id, number in shown.numbers.items():
        if number.contrast is None or number.baseline is None:
            continue
        if (arm_id, number.baseline.entry.arm_id) not in drawn:
            text = _against(results, number.arm, number.baseline)
            found.append(Comparison(number.arm, text, text, "other", number.contrast))
    return found


def _declared(arm: Arm, kind: Kind, tested: Tested) -> Comparison:
    found, declared = tested.found, tested.found.declared
    ours, theirs = map(axis_value, declared.contrast)
    title = "" if declared.axis == "method" else f"{axis_title(declared.axis)} "
    text = f"{title}{ours} {MINUS} {theirs}"
    if declared.at:
        at = [f"{axis_title(a)} {' or '.join(map(axis_value, v))}" for a, v in declared.at.items()]
        text += f", {', '.join(at)}"
    if declared.between is not None:
        first, second = map(axis_value, declared.between)
        text += f", {first} {MINUS} {second}"
    elif len(found.cells) > 1:
        entered, cells = len(found.entered), len(found.cells)
        text += f", mean of {cells if entered in (0, cells) else f'{entered} of {cells}'}"
    return Comparison(arm, text, text, kind, found.contrast, declared.margin, verdict_words(tested))


def along(answer: Answer, shown: Shown, x: str) -> dict[str, Comparison]:
    """Return arm_id -> its difference, for a figure over the axis ``x``.

    Where the primary contrast is of values of ``x``, each value's from its baseline; else the
    pairs of the primary contrast at every place of the grid, and every other arm's difference
    from its baseline.
    """
    assert answer.primary is not None
    results, declared = answer.results, answer.primary.found.declared
    arms = {arm.entry.arm_id: arm for arm in results.arms}
    primary = {cell.pair.arm_id for cell in answer.primary.found.entered}
    found: dict[str, Comparison] = {}
    pairs = [tuple(declared.contrast)]
    if declared.axis == x:
        pairs = [(v, pairs[0][1]) for v in results.study.axes[x] if str(v) != str(pairs[0][1])]
    else:
        for arm_id, number in shown.numbers.items():
            if number.contrast is not None and number.baseline is not None:
                series = f"{number.arm.method} {MINUS} {_baseline(results, number.baseline)}"
                found[arm_id] = Comparison(number.arm, "", series, "other", number.contrast)
    for ours, theirs in pairs:
        whole = declared.model_copy(
            update={"contrast": (ours, theirs), "at": {}, "over": None, "between": None}
        )
        for cell in estimate(results, whole).cells:
            arm = arms[cell.pair.arm_id]
            series = f"{axis_value(ours)} {MINUS} {axis_value(theirs)}"
            if declared.axis == x:
                series = f"{arm.method}, less {axis_title(x)} {axis_value(theirs)}"
            elif declared.axis != "method":
                series = f"{arm.method}, {axis_title(declared.axis)} {series}"
            ours_declared = cell.pair.arm_id in primary and ours == declared.contrast[0]
            kind: Kind = "primary" if ours_declared else "cell"
            found[cell.pair.arm_id] = Comparison(arm, "", series, kind, cell.contrast)
    return found


def arm_name(results: Results, arm: Arm) -> str:
    """Return the arm for a figure's row: its method first."""
    table = results.study.table
    axes = sorted((*table.rows, *table.columns), key=lambda axis: axis != "method")
    return key_label(axes, tuple(str(arm.shown[axis]) for axis in axes))


def _baseline(results: Results, other: Arm) -> str:
    return other.method if "method" in results.study.axes else other.label


def _against(results: Results, arm: Arm, other: Arm) -> str:
    """Return "moge − moe, group size 2"; of a study without methods the two arms' names."""
    if "method" not in results.study.axes:
        return f"{arm_name(results, arm)} {MINUS} {arm_name(results, other)}"
    table = results.study.table
    axes = [axis for axis in (*table.rows, *table.columns) if axis != "method"]
    known = [axis for axis in axes if str(arm.shown[axis]) != ANY]
    at = key_label(known, tuple(str(arm.shown[axis]) for axis in known)) if known else ""
    return ", ".join(filter(None, [f"{arm.method} {MINUS} {other.method}", at]))


def by_series(found: Mapping[str, Comparison]) -> dict[str, list[Comparison]]:
    """Return the comparisons of each series, those with the primary contrast first."""
    series: dict[str, list[Comparison]] = {}
    for each in sorted(found.values(), key=lambda each: each.kind == "other"):
        series.setdefault(each.series, []).append(each)
    return series


def numbers_of_seeds(found: Iterable[Comparison]) -> str:
    """Return how many seeds the comparisons have: "10", or "7 to 10"."""
    counts = sorted({each.contrast.sample.n for each in found if each.contrast})
    return " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else "0"
