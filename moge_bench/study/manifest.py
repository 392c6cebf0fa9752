"""What a study consists of: results/studies/<name>/manifest.json, written when a grid is expanded.

Coordinates -> resolved settings -> run ids. Tables, figures and the report read the manifest, so a
study does not depend on today's presets, on its data or on the folder it was started in.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from moge_bench.config import Frozen, read_model
from moge_bench.study.grid import Arm, Grid, GridFile
from moge_bench.study.names import coordinates_key
from moge_bench.system import held, write_atomically

FILE = "manifest.json"
# Files are named by it: nothing else may stand there, least of all a path that leaves the folder.
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class ArmEntry(Frozen):
    """One arm: where it stands in the grid, what it is, and its runs by seed.

    Several combinations of axis values can be one arm (dense ignores the axes of MoE);
    ``coordinates`` lists them all, the first one first.
    """

    arm_id: Digest
    coordinates: tuple[dict[str, Any], ...]
    settings: dict[str, Any] = Field(description="resolved, less the seed")
    runs: dict[int, Digest] = Field(description="seed -> run_id")


class Declaration(Frozen):
    """When a study first had this primary contrast, question, grid and seeds."""

    digest: str = Field(description="of the study file less its table: GridFile.digest")
    declared: str = Field(description="UTC, as a record's `started`")


class Change(Frozen):
    """What became of a declared study when its declaration stayed: a preset or data changed."""

    changed: str = Field(description="UTC, as a record's `started`")
    what: tuple[str, ...]


class Manifest(Frozen):
    """A study: its file, its arms in the order of the grid, and what was declared when."""

    schema_: Literal[1] = Field(1, alias="schema")
    study: GridFile
    arms: tuple[ArmEntry, ...]
    declarations: tuple[Declaration, ...] = Field(
        (), description="oldest first; none of a study without a primary contrast"
    )
    changes: tuple[Change, ...] = Field((), description="oldest first; of the same studies")

    @property
    def run_ids(self) -> list[str]:
        """Every run, arm by arm."""
        return [run_id for arm in self.arms for run_id in arm.runs.values()]


def make_manifest(grid: Grid) -> Manifest:
    """Return the manifest of an expanded grid."""
    return Manifest(study=grid.file, arms=tuple(_entry(arm) for arm in grid.arms))


def _entry(arm: Arm) -> ArmEntry:
    settings = arm.configs[0].model_dump(mode="json")
    del settings["seed"]
    runs = {config.seed: run_id for config, run_id in zip(arm.configs, arm.run_ids, strict=True)}
    return ArmEntry(arm_id=arm.arm_id, coordinates=arm.coordinates, settings=settings, runs=runs)


def manifest_path(root: Path, study: str) -> Path:
    """Return where the manifest of ``study`` is or will be in the results folder ``root``."""
    return root / "studies" / study / FILE


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; ValueError names the file and what is wrong in it."""
    mend = "`moge-bench ablate` of its study file writes it anew"
    return read_model(path, Manifest, "a manifest", mend)


def study_paths(root: Path) -> list[Path]:
    """Return the manifests of every study in ``root``; ValueError if there is none."""
    found = sorted((root / "studies").glob(f"*/{FILE}"))
    if not found:
        raise ValueError(f"no study was run in {root}; `moge-bench ablate` runs one")
    return found


def compare_manifest(root: Path, manifest: Manifest) -> list[str]:
    """Return sentences on what differs from the manifest that a study has in ``root``, if any.

    ValueError if another study, one with another question, has the name already.
    """
    path = manifest_path(root, manifest.study.name)
    if not path.exists():
        return []
    before = read_manifest(path)
    if before.study.question != manifest.study.question:
        raise ValueError(
            f"{path.parent} holds another study called {manifest.study.name!r}, which asks "
            f"{before.study.question!r}; give this one another name, or move that folder away "
            "(its records stay)"
        )
    notes = _changes(before, manifest)
    if before.study.primary is not None and before.study.declared != manifest.study.declared:
        notes.append(
            "what it declares was changed: the manifest keeps both, and the answer says which "
            "records are older"
        )
    return [f"since the last time {note}" for note in notes]


def save_manifest(root: Path, manifest: Manifest) -> None:
    """Write the manifest of a study; ValueError where ``compare_manifest`` has one.

    What is declared keeps the time at which it first was; what has changed is added with now, the
    arms of an unchanged declaration as ``Change``.
    """
    path = manifest_path(root, manifest.study.name)
    with held(path.parent):
        compare_manifest(root, manifest)
        old = read_manifest(path) if path.exists() else None
        added = {"declarations": _declarations(old, manifest), "changes": _added(old, manifest)}
        manifest = manifest.model_copy(update=added)
        values = manifest.model_dump(mode="json", by_alias=True)
        write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _added(old: Manifest | None, manifest: Manifest) -> tuple[Change, ...]:
    """Return the changes of the study so far, and what its declaration does not show of this."""
    before = old.changes if old is not None else ()
    if old is None or manifest.study.primary is None or old.study.digest != manifest.study.digest:
        return before
    what = tuple(_changes(old, manifest))
    return (*before, Change(changed=_now(), what=what)) if what else before


def _declarations(old: Manifest | None, manifest: Manifest) -> tuple[Declaration, ...]:
    """Return what the study has declared so far, and what it declares.

    A file that is written otherwise, and asks the same of the very same runs, declares nothing new:
    its digest gets the time of the one before.
    """
    study = manifest.study
    before = old.declarations if old is not None else ()
    if study.primary is None or (before and before[-1].digest == study.digest):
        return before
    same = (
        old is not None
        and [each.digest for each in before[-1:]] == [old.study.digest]
        and old.study.declared == study.declared
        and old.run_ids == manifest.run_ids
    )
    declared = before[-1].declared if same else _now()
    return (*before, Declaration(digest=study.digest, declared=declared))


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _changes(before: Manifest, after: Manifest) -> list[str]:
    """Say which arms came, went or got other settings than under the same coordinates before."""
    old = {coordinates_key(c): arm for arm in before.arms for c in arm.coordinates}
    new = {coordinates_key(c): arm for arm in after.arms for c in arm.coordinates}
    notes = []
    for words, names in (
        ("added", new.keys() - old.keys()),
        ("taken away", old.keys() - new.keys()),
    ):
        if names:
            notes.append(f"{len(names)} combinations of axis values were {words}")
    changed: dict[str, int] = {}
    for key in new.keys() & old.keys():
        if new[key].arm_id != old[key].arm_id:
            for path in differing(old[key].settings, new[key].settings):
                changed[path] = changed.get(path, 0) + 1
    for path, count in sorted(changed.items()):
        what = "the content of its data" if path == "data.digest" else path
        notes.append(f"{what} was changed: {count} arms are other runs now")
    return notes


def differing(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted paths at which nested ``a`` and ``b`` differ."""
    paths = []
    for name in [*a, *(name for name in b if name not in a)]:
        left, right = a.get(name), b.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            paths += differing(left, right, f"{prefix}{name}.")
        elif left != right:
            paths.append(prefix + name)
    return paths
