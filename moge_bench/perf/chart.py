"""A small chart of one case as SVG: a line, an interval and a mark a point, words on hover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 280, 110
LEFT, RIGHT, TOP, BOTTOM = 8, 58, 8, 8  # the values' labels stand on the right


@dataclass(frozen=True)
class Point:
    """One measurement: its value and interval, how it is marked, and what hovering over it says.

    ``mark``: "pass", "regression", "accepted" or "cleared".
    """

    value: float
    low: float
    high: float
    mark: str
    words: str


def figure(value: float) -> str:
    """Return ``value`` in four digits, or all those before the point: "0.2421", "13,560"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _mark(kind: str, x: float, y: float) -> str:
    if kind == "regression":
        shape = f"<path d='M{x - 5:.1f} {y + 4:.1f}h10l-5 -9z'"
    elif kind == "accepted":
        shape = f"<path d='M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z'"
    else:
        shape = f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{3.5 if kind == 'cleared' else 2.5}'"
    return f"{shape} class='mark {kind}'/>"


def chart(points: Sequence[Point], unit: str) -> str:
    """Return the SVG of ``points``, evenly spaced in their order; ValueError if there are none.

    The values' axis spans the intervals, and at least 4 % around their middle, so that a change of
    nothing does not look like one.
    """
    if not points:
        raise ValueError("points must hold at least one measurement, got none")
    low, high = min(p.low for p in points), max(p.high for p in points)
    middle, half = (low + high) / 2, (high - low) / 2
    half = max(1.08 * half, 0.02 * abs(middle)) or 1.0
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_of(index: int) -> float:
        return LEFT + width * ((index + 0.5) / len(points))

    def y_of(value: float) -> float:
        return TOP + height * (middle + half - value) / (2 * half)

    line = " ".join(f"{x_of(i):.1f},{y_of(p.value):.1f}" for i, p in enumerate(points))
    parts = [
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(unit)}'>",
        f"<rect class='frame' x='{LEFT}' y='{TOP}' width='{width}' height='{height}'/>",
        f"<polyline class='line' points='{line}'/>",
    ]
    for index, p in enumerate(points):
        x, y = x_of(index), y_of(p.value)
        parts.append("<g class='point'>")
        if p.high > p.low:
            parts.append(
                f"<line class='interval' x1='{x:.1f}' x2='{x:.1f}' y1='{y_of(p.low):.1f}' "
                f"y2='{y_of(p.high):.1f}'/>"
            )
        parts.append(_mark(p.mark, x, y))
        parts.append(f"<circle class='target' cx='{x:.1f}' cy='{y:.1f}' r='7'/>")
        parts.append(f"<title>{escape(p.words)}</title></g>")
    for value in sorted({low, high}):
        parts.append(
            f"<text x='{WIDTH - RIGHT + 4}' y='{y_of(value) + 3.5:.1f}'>{figure(value)}</text>"
        )
    return "".join(parts) + "</svg>"
