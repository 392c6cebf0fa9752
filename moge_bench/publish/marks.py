"""The marks of figures: a dot a seed, a ring for their mean, a bar for its interval; the margin."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from moge_bench.publish.panels import MUTED, PAPER
from moge_bench.study.contrasts import Sample

DOT = "A small dot is a seed, a ring their mean, a bar its 95 % interval (Student's t)."
BAND = "#bdbdbd"
BAND_ALPHA = 0.4


def dots(
    axes: Axes, values: Sequence[float], at: float, hue: str, *, vertical: bool = True
) -> None:
    """Draw a dot a seed at the position ``at``."""
    places = [at] * len(values)
    x, y = (places, values) if vertical else (values, places)
    axes.plot(x, y, ".", color=hue, alpha=0.55, markersize=6, markeredgewidth=0)


def bar(
    axes: Axes, sample: Sample, at: float, hue: str, *, vertical: bool = True,
    filled: bool = False, size: float = 6.0,
) -> None:  # fmt: skip
    """Draw a sample's mean, and its interval where it has one."""
    error = None
    if sample.low is not None and sample.high is not None:
        error = [[sample.mean - sample.low], [sample.high - sample.mean]]
    x, y = (at, sample.mean) if vertical else (sample.mean, at)
    axes.errorbar(
        x, y, error if vertical else None, None if vertical else error, fmt="o",
        color=hue, markersize=size, markerfacecolor=hue if filled else PAPER,
        markeredgewidth=1.6, capsize=3, linewidth=1.3, zorder=3,
    )  # fmt: skip


def band_handle(text: str) -> Patch:
    """Return a legend's entry for the shaded margin."""
    return Patch(facecolor=BAND, alpha=BAND_ALPHA, linewidth=0, label=text)


def declared_handle(text: str) -> Line2D:
    """Return a legend's entry for filled marks."""
    return Line2D([], [], color=MUTED, marker="o", linewidth=0, markersize=6, label=text)
