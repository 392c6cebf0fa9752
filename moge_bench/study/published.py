"""Published figures to stand beside ours: results/published_results.csv, shipped with the package.

Each row names its source. What is not in the file is not known, and is shown as a dash.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources

from moge_bench.config import nearest
from moge_bench.metrics import METRICS


@dataclass(frozen=True)
class Published:
    """One published number, as its source prints it."""

    system: str
    setting: str
    dataset: str
    metric: str
    unit: str
    value: str
    source: str
    note: str

    @property
    def name(self) -> str:
        """How a grid file calls it."""
        return f"{self.system}, {self.setting}"

    @property
    def number(self) -> str:
        """Value and unit, "81.8 %"; "" where no source tells one."""
        return f"{self.value} {self.unit.replace('percent', '%')}".strip()

    def cell(self, metrics: tuple[str, ...]) -> str | None:
        """Return the table cell, or None where the number is of none of ``metrics``."""
        if not self.value or self.metric not in {METRICS[metric].published for metric in metrics}:
            return None
        return f"{self.number} {self.metric}, {self.dataset}"


@functools.cache
def published_results() -> dict[str, tuple[Published, ...]]:
    """Return the rows of the file by name, "system, setting": one for each data set and metric."""
    file = resources.files("moge_bench.study") / "published_results.csv"
    found: dict[str, tuple[Published, ...]] = {}
    with file.open(encoding="utf-8") as lines:
        for values in csv.DictReader(lines):
            row = Published(**values)
            found[row.name] = (*found.get(row.name, ()), row)
    return found


def find_published(name: str) -> tuple[Published, ...]:
    """Return the rows called ``name``; ValueError names the nearest."""
    known = published_results()
    if name not in known:
        raise ValueError(f"no published result is called {name!r}{nearest(name, list(known))}")
    return known[name]
