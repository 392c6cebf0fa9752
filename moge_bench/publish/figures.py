"""A study to figures, PNG and SVG: its answer, the maps of its experts, cost, training curves.

From records and their analyses alone; the same files give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from moge_bench.analysis.store import AnalysisStore
from moge_bench.publish.beside import beside
from moge_bench.publish.captions import Captions
from moge_bench.publish.comparisons import answered_in, listed
from moge_bench.publish.conditions import Conditions
from moge_bench.publish.cost import draw_cost
from moge_bench.publish.curves import draw_curves
from moge_bench.publish.design import design
from moge_bench.publish.forest import draw_forest
from moge_bench.publish.maps import draw_maps, mapped
from moge_bench.publish.numbers import Shown, shown_numbers
from moge_bench.publish.panels import INK, PAPER
from moge_bench.publish.trend import draw_trend, draw_values
from moge_bench.study.answer import Answer
from moge_bench.system import write_atomically

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "moge-bench", "svg.fonttype": "none", "font.size": 10, "axes.grid": True,
    "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False, "savefig.dpi": 120, "lines.linewidth": 1.5,
    "axes.axisbelow": True, "text.parse_math": False,  # a $ in a name is a letter
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "grid.color": INK, "figure.facecolor": PAPER, "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}  # fmt: skip


def write_figures(answer: Answer, folder: Path, analyses: AnalysisStore) -> list[Path]:
    """Write folder/{answer,maps,cost,curves}.{png,svg}, those that have something to show.

    A study without a finished run has no figure: the list is empty. A figure of more panels than
    a page holds goes on in NAME_2 and so on. Older figures of the folder are removed.
    """
    paths = []
    with rc_context(_STYLE):
        for name, figure in _figures(answer, folder, analyses):
            for kind in ("png", "svg"):
                paths.append(folder / f"{name}.{kind}")
                write_atomically(paths[-1], _render(figure, kind))
                figure.set_layout_engine("none")  # laid out once: a quarter of the time
    for kind in ("png", "svg"):
        for old in set(folder.glob(f"*.{kind}")) - set(paths):
            old.unlink()
    return paths


def svg_figures(
    answer: Answer, folder: Path, analyses: AnalysisStore, names: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Return (name, SVG) of those figures of ``write_figures`` that are called ``names``."""
    with rc_context(_STYLE):
        return [
            (name, _render(figure, "svg").decode())
            for name, figure in _figures(answer, folder, analyses, names)
        ]


def svg_of(draw: Callable[[], Figure]) -> str:
    """Return the SVG of a figure that ``draw`` makes, in the style of all figures."""
    with rc_context(_STYLE):
        return _render(draw(), "svg").decode()


def _figures(
    answer: Answer, folder: Path, analyses: AnalysisStore,
    names: tuple[str, ...] = ("answer", "maps", "cost", "curves"),
) -> Iterator[tuple[str, Figure]]:  # fmt: skip
    results = answer.results
    if not any(arm.records for arm in results.arms):
        return
    numbers, captions = shown_numbers(results), Captions(results, Conditions(results), folder)
    drawn = {
        "answer": lambda: draw_answer(answer, numbers, captions),
        "maps": lambda: draw_maps(answer, mapped(answer, analyses), captions),
        "cost": lambda: draw_cost(results, numbers, captions),
        "curves": lambda: draw_curves(design(results), captions),
    }
    for name in names:
        for page, figure in enumerate(drawn[name](), start=1):
            yield name + (f"_{page}" if page > 1 else ""), figure


def draw_answer(answer: Answer, numbers: list[Shown], captions: Captions) -> Iterator[Figure]:
    """Yield the figure of the question, in the form that its axis asks for.

    Over a numeric axis with three values or more: the difference at each, or the metric where no
    contrast is declared. Else a row a comparison; the metric where nothing is compared.
    """
    shown = answered_in(answer, numbers)
    if not any(n.sample is not None for each in shown for n in each.numbers.values()):
        return
    plan, more = design(answer.results), beside(numbers, shown[0].split)
    scaled = plan.numeric and len(answer.results.study.axes[plan.x]) > 2
    if scaled and answer.primary is not None:
        yield from draw_trend(plan, answer, shown[0], more, captions)
    elif scaled or not listed(answer, shown[0]):
        yield from draw_values(plan, answer, shown, more, captions)
    else:
        yield from draw_forest(answer, shown, more, captions)


def _render(figure: Figure, kind: str) -> bytes:
    """Return the file's bytes, without the date and version that would make two runs differ."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
