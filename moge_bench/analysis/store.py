"""The analyses of a results folder: analysis/<ab>/<run_id>.json, a file a run; small and committed.

And analysis/seeds/<arm_id>.json: what two seeds of one arm have in common. Written like records
(runs/store.py): whole or not at all, the same file on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeVar

from pydantic import Field, FiniteFloat

from moge_bench.analysis.numbers import Number
from moge_bench.config import Frozen, read_model
from moge_bench.system import write_atomically

VERSION = 2  # of the definitions: an analysis of an older one is made again


class LayerMap(Frozen):
    """The map of one MoE layer.

    Attributes:
        block, rows, cols, border: which, and its form; the border is that of the analyses.
        load: (N,) choices on the validation split.
        categories: the labels that ``preferred`` counts: classes, or the ids of the most frequent
            tokens of a text and -1 for all others.
        preferred: (N,) index of the category whose share of the expert's scores exceeds its share
            of all scores by the largest factor, ``lift`` (N,).
        router_colours: (N, 3) principal components of the router's rows at length 1, from -1 to 1:
            equal colours for equal rows; None where the gate is no plain matrix.
        router_similarity: (N,) mean cosine of the expert's row with its neighbours'.
    """

    block: int
    rows: int
    cols: int
    border: str
    load: list[int]
    categories: list[int]
    preferred: list[int]
    lift: list[FiniteFloat]
    router_colours: list[list[FiniteFloat]] | None = None
    router_similarity: list[FiniteFloat] | None = None


class _File(Frozen):
    schema_: Literal[1] = Field(1, alias="schema")
    version: int
    numbers: list[Number]

    def value(self, name: str) -> float | None:
        """Return the mean of ``name`` over the MoE layers, at no point of a curve; or None."""
        found = [each.value for each in self.numbers if each.name == name and each.at is None]
        return fmean(found) if found else None


class Analysis(_File):
    """What one run learned.

    Attributes:
        code: digest of the code that trained it, as in its record.
        maps: what figures show of each MoE layer.
    """

    run_id: str
    code: str | None = None
    maps: list[LayerMap]


class SeedNull(_File):
    """What two runs of one arm have in common, the ``runs`` with the lowest two seeds."""

    arm_id: str
    runs: list[str]


_Kind = TypeVar("_Kind", Analysis, SeedNull)


class AnalysisStore:
    """The analyses below ``root``, a results folder; it need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "analysis"

    def path(self, run_id: str) -> Path:
        """Return where the analysis of ``run_id`` is or will be."""
        return self.folder / run_id[:2] / f"{run_id}.json"

    def seeds_path(self, arm_id: str) -> Path:
        """Return where the seed-to-seed null of ``arm_id`` is or will be."""
        return self.folder / "seeds" / f"{arm_id}.json"

    def read(self, run_id: str) -> Analysis | None:
        """Return an analysis, None where there is none; ValueError names a damaged file."""
        return _read(self.path(run_id), Analysis)

    def read_seeds(self, arm_id: str) -> SeedNull | None:
        """Return a seed-to-seed null, None where there is none; ValueError as for ``read``."""
        return _read(self.seeds_path(arm_id), SeedNull)

    def write(self, found: Analysis) -> Path:
        """Write the analysis of a run."""
        return _write(self.path(found.run_id), found)

    def write_seeds(self, found: SeedNull) -> Path:
        """Write the seed-to-seed null of an arm."""
        return _write(self.seeds_path(found.arm_id), found)


def _read(path: Path, kind: type[_Kind]) -> _Kind | None:
    return read_model(path, kind, "an analysis", "delete it") if path.exists() else None


def _write(path: Path, found: Analysis | SeedNull) -> Path:
    """Write a number or a map a line: small files whose differences can be read."""
    values = found.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines = []
    for name, value in values.items():
        text = json.dumps(value)
        if name in ("numbers", "maps") and value:
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path
