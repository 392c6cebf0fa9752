"""A table for each family of systems: what was measured here beside what is published.

Dashes stand where nothing is known; but for the last column, one of nothing but dashes is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moge_bench.metrics import METRICS
from moge_bench.presets import PRESETS, resolve
from moge_bench.publish.captions import results_folder
from moge_bench.publish.cells import NONE
from moge_bench.publish.render import Cell, Table, to_markdown
from moge_bench.study.contrasts import describe
from moge_bench.study.families import FAMILIES, Family, System
from moge_bench.study.frame import Results, values_by_seed
from moge_bench.study.published import Published, find_published
from moge_bench.system import write_atomically

_HEAD = ("system", "measured here", "published result", "data", "metric", "published")


def write_systems(studies: Sequence[Results], root: Path) -> None:
    """Write root/systems.md: the tables of every family."""
    made = f"Made by: moge-bench tables --results {results_folder(root / 'studies' / 'any')}."
    lines = [
        "# Systems", "",
        "What is published of the systems that the paper and its code evaluate, or of the nearest "
        "to them, beside what was measured here. No number of MoGE could be read. The systems: "
        "docs/method.md.", "",
    ]  # fmt: skip
    lines += [to_markdown(table) for table in family_tables(studies, made)]
    write_atomically(root / "systems.md", "\n".join(lines).rstrip("\n") + "\n")


def family_tables(studies: Sequence[Results], made: str) -> list[Table]:
    """Return the table of every family; ``made`` ends the captions."""
    return [_table(family, studies, made) for family in FAMILIES]


def _table(family: Family, studies: Sequence[Results], made: str) -> Table:
    rows: list[list[str]] = []
    shown: list[Published] = []
    for system in family.systems:
        ours = _measured(system, family.metric, studies)
        found = [row for name in system.beside for row in find_published(name)]
        shown += found
        known = [_published(row) for row in found if row.value] or [(NONE,) * 4]
        rows += [[_name(system), ours, *cells] for cells in known]
    last = len(_HEAD) - 1  # what is published is told of every family, if only by dashes
    kept = [i for i in range(len(_HEAD)) if i == last or any(row[i] != NONE for row in rows)]
    said = [_missing(family, kept), *_sources(shown), made]
    return Table(
        family.title, family.title, "quality", tuple(_HEAD[i] for i in kept),
        tuple(tuple(Cell(row[i]) for i in kept) for row in rows),
        " ".join(text for text in said if text), len(kept),
    )  # fmt: skip


def _name(system: System) -> str:
    planned = "-" in system.name and " " not in system.name and system.name not in PRESETS
    return f"{system.name} (planned)" if planned else system.name


def _published(row: Published) -> tuple[str, ...]:
    return row.name, row.dataset, row.metric, row.number


def _measured(system: System, metric: str, studies: Sequence[Results]) -> str:
    """Return the preset's own arm, as any study has trained it: mean [interval] (n)."""
    if system.name not in PRESETS:
        return NONE
    arm_id, values = resolve(system.name).arm_id, {}
    for results in studies:
        for arm in results.arms:
            if arm.entry.arm_id == arm_id:
                values.update(values_by_seed(arm, METRICS[metric], "test"))
    sample = describe([values[seed] for seed in sorted(values)])
    if sample is None:
        return NONE
    digits = METRICS[metric].digits
    text = f"{sample.mean:.{digits}f}"
    if sample.low is not None and sample.high is not None:
        text += f" [{sample.low:.{digits}f}; {sample.high:.{digits}f}]"
    return f"{text} (n = {sample.n})"


def _missing(family: Family, kept: Sequence[int]) -> str:
    metric = METRICS[family.metric].heading
    said = f"Measured here: test {metric}, mean [95 % interval], n seeds."
    if _HEAD.index("measured here") not in kept:
        said = "Not measured here."
    if _HEAD.index("published result") not in kept:
        said += " No published number is known."
    return said


def _sources(shown: Sequence[Published]) -> list[str]:
    """Return each source once, what to know of its numbers, and whose they are."""
    found: dict[str, dict[str, None]] = {}
    for row in shown:
        source = f"{row.source} ({row.note})" if row.note else row.source
        found.setdefault(source, {})[f"{row.system} on {row.dataset}"] = None
    return [f"{source}: {', '.join(names)}." for source, names in found.items()]
