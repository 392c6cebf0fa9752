"""A grid file: what is varied, what is held, what the table shows. Checked before anything trains.

Format: docs/design.md "One study file". A grid expands to arms; combinations of axis values whose
resolved settings are equal (dense ignores the axes of MoE) are one arm, with one run a seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from moge_bench.config import MAX_SEED, Frozen, RunConfig, faults, field_paths
from moge_bench.data.registry import find_data
from moge_bench.methods import METHODS
from moge_bench.metrics import METRICS, SPLITS
from moge_bench.presets import PRESETS, resolve
from moge_bench.study.declared import DeclaredContrast, check_declared, check_pairs, digest_of
from moge_bench.study.names import canonical, check_name, find_value
from moge_bench.study.obtainable import check_obtainable
from moge_bench.study.published import published_results
from moge_bench.study.strict_yaml import load_mapping


class Base(Frozen):
    """What every arm has in common; further dotted settings go under ``set``."""

    preset: str | None = Field(None, description="None: an axis")
    method: str | None = None
    data: str | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="a number n means 0..n-1")
    set: dict[str, Any] = Field({}, description="dotted settings held fixed")

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: Any) -> Any:
        return tuple(range(value)) if isinstance(value, int) and 0 < value <= 10_000 else value

    @field_validator("seeds")
    @classmethod
    def _bounded(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if outside := [seed for seed in seeds if not 0 <= seed <= MAX_SEED]:
            raise ValueError(f"seeds go from 0 to {MAX_SEED}, got {outside[0]}")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"a seed is named twice: {list(seeds)}")
        return seeds


class TableLayout(Frozen):
    """Rows and columns are axes; metrics are numbers, ``splits`` is where they are read."""

    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()
    metrics: tuple[str, ...] = Field(
        ("top1_accuracy", "peak_memory_mib", "tokens_per_second"), min_length=1
    )
    splits: tuple[str, ...] = Field(("test",), min_length=1)
    published: dict[str, str] = Field(
        {}, description='method: "system, setting" of the row of published_results.csv beside it'
    )

    @field_validator("rows", "columns", "metrics", "splits", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class GridFile(Frozen):
    """The schema of a grid file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    question: str
    primary: DeclaredContrast | None = Field(
        None, description="what answers the question; a study without one claims nothing"
    )
    secondary: tuple[DeclaredContrast, ...] = Field(
        (), description="other contrasts, tested as one family (Holm)"
    )
    base: Base
    axes: dict[str, tuple[Any, ...]] = Field(min_length=1)
    skip: tuple[dict[str, Any], ...] = Field(
        (), description="combinations left out on purpose: each names values of some axes"
    )
    table: TableLayout

    @property
    def declared(self) -> dict[str, DeclaredContrast]:
        """Every declared contrast by its field: "primary", "secondary.0", ..."""
        named = {f"secondary.{i}": each for i, each in enumerate(self.secondary)}
        return named if self.primary is None else {"primary": self.primary, **named}

    @property
    def digest(self) -> str:
        """Digest of what is declared: the question, the contrasts, the grid and its seeds."""
        plan = self.model_dump(mode="json", exclude={"table"}, exclude_defaults=True)
        return digest_of([plan, self.base.seeds])


@dataclass(frozen=True)
class Arm:
    """One arm: every combination of axis values that resolves to it, and its run for each seed."""

    arm_id: str
    coordinates: tuple[dict[str, Any], ...]
    configs: tuple[RunConfig, ...]
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A validated grid, expanded."""

    file: GridFile
    arms: tuple[Arm, ...]

    @property
    def configs(self) -> list[RunConfig]:
        """Every run, in the order of ``runs``."""
        return [config for _, config, _ in self.runs]

    @property
    def runs(self) -> list[tuple[Arm, RunConfig, str]]:
        """(arm, config, run_id), seed after seed: a study cut short has each arm as often."""
        return [
            (arm, arm.configs[index], arm.run_ids[index])
            for index in range(len(self.file.base.seeds))
            for arm in self.arms
        ]


def default_grid_path() -> Path:
    """Return the quick grid that the package ships; in a checkout it links to ablations/."""
    return Path(__file__).parent / "grids" / "quick.yaml"


def load_grid(path: Path) -> Grid:
    """Read, validate and expand a grid file; one ValueError names the file, the field and why."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"grid file {path} cannot be read: {error}") from None
    return parse_grid(content, str(path))


def parse_grid(content: str, source: str) -> Grid:
    """Validate and expand the text of a grid file; ``source`` names it in errors."""
    try:
        file = _validate(load_mapping(content))
        grid = Grid(file, tuple(_expand(file)))
        # After the arms: a misspelt value is the fault of its axis, not of a contrast.
        for field, declared in file.declared.items():
            check_declared(field, declared, file.axes, file.table.metrics, file.table.splits)
            check_pairs(field, declared, file.axes, grid.arms)
        check_obtainable(
            file.table.metrics, file.table.splits, [arm.configs[0] for arm in grid.arms]
        )
        return grid
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _validate(values: dict[str, Any]) -> GridFile:
    try:
        file = GridFile.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(faults(error, GridFile))) from None
    _check_settings(file)
    for axis, axis_values in file.axes.items():
        if axis in file.base.set or (axis == "method" and file.base.method is not None):
            raise ValueError(f"axes.{axis}: it is held fixed in base too; keep one of the two")
        if not axis_values:
            raise ValueError(f"axes.{axis} has no values")
        if len({canonical(value) for value in axis_values}) < len(axis_values):
            raise ValueError(f"axes.{axis} names a value twice: {list(axis_values)}")
    for method in file.axes.get("method", ()):
        check_name("axes.method", "method", str(method), tuple(METHODS))
    _check_skip(file)
    _check_layout(file)
    return file


def _check_settings(file: GridFile) -> None:
    """Check preset and dotted paths by themselves, so that a typo is not blamed on the table."""
    if "seed" in file.axes:
        raise ValueError("axes.seed: not an axis; seeds stand under base")
    if (file.base.preset is None) == ("preset" not in file.axes):
        raise ValueError("the preset must stand under base or be an axis, one of the two")
    presets = [file.base.preset] if file.base.preset is not None else file.axes["preset"]
    for preset in presets:
        field = "base.preset" if file.base.preset is not None else "axes.preset"
        check_name(field, "preset", str(preset), tuple(PRESETS))
        known = field_paths(PRESETS[preset].system.model_dump(mode="json"))
        for field, paths in (("base.set", file.base.set), ("axes", file.axes)):
            for path in paths:
                check_name(field, "setting", path, known)


def _check_skip(file: GridFile) -> None:
    for index, combination in enumerate(file.skip):
        for axis, value in combination.items():
            check_name(f"skip.{index}", "axis", axis, tuple(file.axes))
            find_value(f"skip.{index}", axis, value, file.axes[axis])


def _check_layout(file: GridFile) -> None:
    table, axes = file.table, tuple(file.axes)
    for place in ("rows", "columns"):
        for axis in getattr(table, place):
            check_name(f"table.{place}", "axis", axis, axes)
    shown = (*table.rows, *table.columns)
    if sorted(shown) != sorted(axes):
        raise ValueError(
            f"table.rows and table.columns must name every axis once: axes are {list(axes)}, "
            f"the table shows {list(shown)}"
        )
    for metric in table.metrics:
        check_name("table.metrics", "metric", metric, tuple(METRICS))
    for split in table.splits:
        check_name("table.splits", "split", split, SPLITS)
    for method, name in table.published.items():
        check_name("table.published", "method", method, tuple(METHODS))
        check_name("table.published", "published result", name, tuple(published_results()))


def _expand(file: GridFile) -> Iterator[Arm]:
    """Yield the arms; ValueError says at which coordinates one is impossible."""
    held = dict(file.base.set)
    if file.base.data is not None:
        held["data.name"] = file.base.data
    coordinates_of: dict[str, list[dict[str, Any]]] = {}
    first_of: dict[str, RunConfig] = {}
    for values in itertools.product(*file.axes.values()):
        coordinates = dict(zip(file.axes, values, strict=True))
        if any(_matches(coordinates, combination) for combination in file.skip):
            continue
        overrides = {**held, **coordinates}
        method = overrides.pop("method", file.base.method)
        preset = overrides.pop("preset", file.base.preset)
        try:
            config = find_data(resolve(preset, method, overrides, file.base.seeds[0]))
            _check_splits(config, file.table)
        except ValueError as error:
            where = ", ".join(f"{axis}={value}" for axis, value in coordinates.items())
            raise ValueError(
                f"at {where}: {error} (a combination can be left out with `skip:`)"
            ) from None
        arm_id = config.arm_id
        first_of.setdefault(arm_id, config)
        coordinates_of.setdefault(arm_id, []).append(coordinates)
    if not first_of:
        raise ValueError("skip leaves no combination of axis values")
    for arm_id, config in first_of.items():
        configs = tuple(config.model_copy(update={"seed": seed}) for seed in file.base.seeds)
        run_ids = tuple(each.run_id for each in configs)
        yield Arm(arm_id, tuple(coordinates_of[arm_id]), configs, run_ids)


def _matches(coordinates: Mapping[str, Any], combination: Mapping[str, Any]) -> bool:
    return all(
        canonical(coordinates[axis]) == canonical(value) for axis, value in combination.items()
    )


def _check_splits(config: RunConfig, table: TableLayout) -> None:
    """Check that a run reads the splits that the table shows."""
    if not config.data.evaluate_test and any(split.startswith("test") for split in table.splits):
        raise ValueError(
            "table.splits shows the test split, which data.evaluate_test=false leaves unread; "
            "write splits: validation"
        )
