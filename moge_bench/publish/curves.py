"""Training loss over the steps: how the arms came to what they reach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moge_bench.publish.captions import Captions
from moge_bench.publish.design import Design, Panel, colour
from moge_bench.publish.layout import axis_title
from moge_bench.publish.panels import PANELS, finish, frame, label_edges, method_handles, pages
from moge_bench.study.frame import Arm

_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")


def draw_curves(plan: Design, captions: Captions) -> Iterator[Figure]:
    """Yield the mean over seeds in a band from least to most; x's values are dashes.

    Of more than four values of x, four are drawn: the first, the last and two between.
    """
    texts = [text for at, text in plan.ticks if at >= 0] if plan.x != "method" else []
    last = len(texts) - 1
    drawn = texts if last < 4 else [texts[round(i * last / 3)] for i in range(4)]
    dashes = dict(zip(drawn, _DASHES, strict=False))
    cache: dict[str, dict[int, list[float]]] = {}
    for part, said in pages(plan.panels, PANELS):
        figure, axes = frame(len(part), height=2.9)
        for place, panel in zip(axes, part, strict=True):
            _draw_panel(place, plan, panel, dashes, cache)
            place.set_title(panel.title)
        label_edges(axes, "optimiser step", "training loss (nats)")
        note = "Mean over seeds, band from least to most."
        if len(drawn) < len(texts):
            note += f" {len(drawn)} of the {len(texts)} values of {axis_title(plan.x)} are drawn."
        lines = [
            Line2D([], [], color="black", linestyle=dash, label=f"{axis_title(plan.x)} {text}")
            for text, dash in dashes.items()
        ]
        legends = [method_handles(plan.methods, marker=""), lines]
        note = f"{note} {said} {captions.tail('figures')}"
        yield finish(figure, captions.question, legends, note)


def _draw_panel(
    axes: Axes, plan: Design, panel: Panel, dashes: dict[str, Any],
    cache: dict[str, dict[int, list[float]]],
) -> None:  # fmt: skip
    for place in panel.places:
        if plan.x != "method" and not place.everywhere and place.text not in dashes:
            continue
        dash = "-" if place.everywhere or plan.x == "method" else dashes[place.text]
        arm_id = place.arm.entry.arm_id
        if arm_id not in cache:
            cache[arm_id] = _points(place.arm)
        points = cache[arm_id]
        steps = sorted(points)
        hue = colour(place.arm)
        axes.plot(steps, [fmean(points[s]) for s in steps], dash, color=hue, linewidth=1.2)
        axes.fill_between(
            steps, [min(points[s]) for s in steps], [max(points[s]) for s in steps], color=hue,
            alpha=0.08, linewidth=0,
        )  # fmt: skip


def _points(arm: Arm) -> dict[int, list[float]]:
    """Return step -> training loss of every seed."""
    points: defaultdict[int, list[float]] = defaultdict(list)
    for record in arm.records.values():
        for point in record.curves:
            if point.name == "task_loss" and point.split == "training":
                points[point.step].append(point.value)
    return points
