"""A study to figures, PNG and SVG: quality, differences from the baseline, cost, training curves.

From records alone; the same records give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from moge_bench.publish.captions import Captions
from moge_bench.publish.charts import draw_cost, draw_differences, draw_quality
from moge_bench.publish.conditions import Conditions
from moge_bench.publish.curves import draw_curves
from moge_bench.publish.design import design
from moge_bench.publish.numbers import shown_numbers
from moge_bench.study.frame import Results
from moge_bench.system import write_atomically

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "moge-bench", "svg.fonttype": "none", "font.size": 10, "axes.grid": True,
    "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False, "savefig.dpi": 120, "lines.linewidth": 1.5,
    "axes.axisbelow": True, "text.parse_math": False,  # a $ in a name is a letter
}  # fmt: skip


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Write folder/{quality,differences,cost,curves}.{png,svg}, those that have something to show.

    A study without a finished run has no figure: the list is empty. A figure of more panels than
    a page holds goes on in NAME_2 and so on. Older figures of the folder are removed.
    """
    paths = []
    if any(arm.records for arm in results.arms):
        with rc_context(_STYLE):
            for name, figure in _figures(results, folder):
                for kind in ("png", "svg"):
                    paths.append(folder / f"{name}.{kind}")
                    write_atomically(paths[-1], _render(figure, kind))
                    figure.set_layout_engine("none")  # laid out once: a quarter of the time
    for kind in ("png", "svg"):
        for old in set(folder.glob(f"*.{kind}")) - set(paths):
            old.unlink()
    return paths


def _figures(results: Results, folder: Path) -> Iterator[tuple[str, Figure]]:
    numbers, plan = shown_numbers(results), design(results)
    captions = Captions(results, Conditions(results), folder)
    for name, pages in (
        ("quality", draw_quality(plan, numbers, captions)),
        ("differences", draw_differences(results, numbers, captions)),
        ("cost", draw_cost(results, numbers, captions)),
        ("curves", draw_curves(plan, captions)),
    ):
        for page, figure in enumerate(pages, start=1):
            yield name + (f"_{page}" if page > 1 else ""), figure


def _render(figure: Figure, kind: str) -> bytes:
    """Return the file's bytes, without the date and version that would make two runs differ."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
