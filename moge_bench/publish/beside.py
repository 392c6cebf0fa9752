"""The panels beside a difference: what the loss did to the router, dose and entropy of the scores.

Without them a null result means nothing (docs/method.md "Analyses").
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from moge_bench.publish.design import Design, Panel, colour, dodge
from moge_bench.publish.marks import bar
from moge_bench.publish.numbers import Shown
from moge_bench.study.contrasts import Sample
from moge_bench.study.frame import Arm

_NAMES = ("dose", "score_entropy")
_SIZE = 4.5
_LETTERS = 4  # of a number, two of which fit below a panel


def beside(numbers: Sequence[Shown], split: str) -> list[Shown]:
    """Return dose and score entropy, those that the table has, on ``split`` where it has that."""
    found = []
    for name in _NAMES:
        of = [each for each in numbers if each.metric.name == name and _known(each)]
        found += [each for each in of if each.split == split] or of[:1]
    return found


def _known(shown: Shown) -> bool:
    return any(number.sample is not None for number in shown.numbers.values())


def _is_log(shown: Shown) -> bool:
    """A dose may span decades; a logarithmic axis of less than one has no room for its labels."""
    samples = [number.sample for number in shown.numbers.values()]
    means = [each.mean for each in samples if each is not None and each.mean > 0]
    return shown.metric.name == "dose" and len(means) > 0 and max(means) >= 10 * min(means)


def _has_none(shown: Shown, sample: Sample) -> bool:
    """An arm without such a loss has no dose."""
    return shown.metric.name == "dose" and sample.mean <= 0


def note(shown: Sequence[Shown]) -> str:
    """Say what these panels show."""
    said = {
        "dose": "Dose: |weight times gradient of the loss| over |gradient of the task loss| at the "
        "gate; arms without such a loss have none.",
        "score_entropy": "Score entropy: of the router's scores, 1 where all experts get the same.",
    }
    return " ".join(said[each.metric.name] for each in shown)


def draw_over_x(axes: Axes, plan: Design, panel: Panel, shown: Shown) -> None:
    """Draw every arm's mean and interval at its x; a method's values are joined."""
    log = _is_log(shown)
    if log:
        axes.set_yscale("log", nonpositive="clip")
    lines: dict[str, list[tuple[float, float, Arm]]] = {}
    for place in panel.places:
        sample = shown.numbers[place.arm.entry.arm_id].sample
        if sample is None or _has_none(shown, sample):
            continue
        at = place.x + (0.0 if place.everywhere else dodge(plan, place.arm.method))
        bar(axes, sample, at, colour(place.arm), size=_SIZE)
        if not place.everywhere:
            lines.setdefault(place.arm.method, []).append((at, sample.mean, place.arm))
    for points in lines.values():
        points.sort(key=lambda point: point[0])
        axes.plot(
            [x for x, *_ in points], [y for _, y, _ in points], color=colour(points[0][2]),
            linewidth=1.2, alpha=0.7,
        )  # fmt: skip
    if log:
        _plain(axes.yaxis)
    else:
        axes.margins(y=0.12)  # a low panel: the highest mark is whole
        if shown.metric.name == "dose":
            axes.set_ylim(bottom=0)
    axes.set_ylabel(shown.metric.heading)
    axes.grid(visible=False, axis="x")


def draw_rows(axes: Axes, arms: Sequence[Arm], shown: Shown) -> None:
    """Draw the arm of every row: its mean and interval, from left to right."""
    log = _is_log(shown)
    if log:
        axes.set_xscale("log", nonpositive="clip")
    for row, arm in enumerate(arms):
        sample = shown.numbers[arm.entry.arm_id].sample
        if sample is not None and not _has_none(shown, sample):
            bar(axes, sample, row, colour(arm), vertical=False, size=_SIZE)
    if log:
        _plain(axes.xaxis, most=3)
    else:
        if shown.metric.name == "dose":
            axes.set_xlim(left=0)
        _two_ticks(axes.xaxis)
    axes.set_xlabel(shown.metric.heading.replace(" ", "\n", 1))
    axes.grid(visible=False, axis="y")


def _two_ticks(axis: Axis) -> None:
    """Label two values of a narrow axis, or one in the middle where two would meet."""
    low, high = axis.get_view_interval()
    ticks = [tick for tick in MaxNLocator(2).tick_values(low, high) if low <= tick <= high]
    if max(len(f"{tick:g}") for tick in ticks) > _LETTERS:
        ticks = [min(ticks, key=lambda tick: abs(tick - (low + high) / 2))]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _plain(axis: Axis, most: int = 4) -> None:
    """Label a logarithmic axis at ``most`` powers of ten, or finer where it holds no two."""
    low, high = sorted(axis.get_view_interval())
    wide = high / max(low, 1e-300) >= 30
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=most))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
