"""A grid file: what is varied, what is held, what the table shows. Checked before anything trains.

Format: DESIGN.md "One grid file". A grid expands to points, one per combination of axis values;
points whose resolved configs are equal (dense ignores the MoE axes) share one run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from moge_bench.config import Frozen, Method, RunConfig, field_paths, nearest
from moge_bench.config.words import keep_words, string_settings
from moge_bench.data import images, text
from moge_bench.presets import PRESETS, SYSTEMS, resolve
from moge_bench.runs.record import write_atomically
from moge_bench.study.published import published_results

# What a table can show: measured by a run on a data split, or by the speed pass, or of the model.
SPLIT_METRICS = ("top1_accuracy", "top5_accuracy", "cross_entropy", "perplexity", "bits_per_byte")
SPEED_METRICS = (
    "peak_memory_mib", "tokens_per_second", "step_ms", "scoring_tokens_per_second",
)  # fmt: skip
RUN_METRICS = ("peak_rss_mib", "parameters", "active_parameters")
SPLITS = ("validation", "test", "validation_attacked", "test_attacked")
METRICS = (*SPLIT_METRICS, *SPEED_METRICS, *RUN_METRICS)


class Base(Frozen):
    """What every cell has in common; further dotted settings go under ``set``."""

    preset: str
    data: str | None = None
    seeds: tuple[int, ...] = Field((0, 1), min_length=1)
    set: dict[str, Any] = Field({}, description="dotted settings held fixed")


class TableLayout(Frozen):
    """Rows and columns are axes; metrics are numbers, ``split`` is where they are read."""

    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("top1_accuracy", "peak_memory_mib", "tokens_per_second")
    splits: tuple[str, ...] = ("test",)
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
    base: Base
    axes: dict[str, tuple[Any, ...]] = Field(min_length=1)
    table: TableLayout


@dataclass(frozen=True)
class Point:
    """One combination of axis values, and its run for every seed of the grid."""

    coordinates: dict[str, Any]
    configs: tuple[RunConfig, ...]

    @property
    def hashes(self) -> tuple[str, ...]:
        """The records of this point, in the order of the grid's seeds."""
        return tuple(config.hash() for config in self.configs)


@dataclass(frozen=True)
class Grid:
    """A validated grid, expanded; ``text`` is the file as it was read."""

    file: GridFile
    points: tuple[Point, ...]
    text: str

    @property
    def configs(self) -> list[RunConfig]:
        """Every distinct run, in the order of the points, all seeds of a point together."""
        distinct = {config.hash(): config for point in self.points for config in point.configs}
        return list(distinct.values())

    def save(self, root: Path) -> None:
        """Keep the file beside the records, so that ``tables`` needs nothing else."""
        write_atomically(root / "grids" / f"{self.file.name}.yaml", self.text)


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
        file = _validate(yaml.load(content, _Loader))
        return Grid(file, tuple(_expand(file)), content)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


# Fields of the file and settings whose values are strings: "precision: no" is not False.
_STRINGS = string_settings() | {"name", "question", "preset", "data"}


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; here the second is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in _STRINGS:
                keep_words(value)
            if key.value in seen:
                raise ValueError(f"{key.value!r} stands twice, again in line "
                                 f"{key.start_mark.line + 1}")  # fmt: skip
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _validate(values: Any) -> GridFile:
    if not isinstance(values, dict):
        raise ValueError(f"a grid file is a mapping with name, question, base, axes, table; got "
                         f"{type(values).__name__}")  # fmt: skip
    try:
        file = GridFile.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(issue) for issue in error.errors())) from None
    _check_settings(file)
    for axis, axis_values in file.axes.items():
        if axis in ("seed", "preset"):
            raise ValueError(f"axes.{axis}: not an axis; seeds and preset stand under base")
        if axis in file.base.set:
            raise ValueError(f"axes.{axis}: it is held fixed in base.set too; keep one of the two")
        if not axis_values:
            raise ValueError(f"axes.{axis} has no values")
        if len({_canonical(value) for value in axis_values}) < len(axis_values):
            raise ValueError(f"axes.{axis} names a value twice: {list(axis_values)}")
    seeds = file.base.seeds
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"base.seeds names a seed twice: {list(seeds)}")
    _check_layout(file)
    return file


def _check_settings(file: GridFile) -> None:
    """Check preset and dotted paths by themselves, so that a typo is not blamed on the table."""
    _check_name("base.preset", "preset", file.base.preset, tuple(PRESETS))
    system, _ = PRESETS[file.base.preset]
    known = field_paths(SYSTEMS[system].model_dump(mode="json"))
    for field, paths in (("base.set", file.base.set), ("axes", file.axes)):
        for path in paths:
            _check_name(field, "setting", path, known)


def _canonical(value: Any) -> str:
    """Return equal text for values that a config would not tell apart: 8, 8.0 and "8"."""
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return repr(value)


def _explain(issue: Any) -> str:
    path = ".".join(str(part) for part in issue["loc"])
    if issue["type"] != "extra_forbidden":
        return f"{path}: {issue['msg']}"
    owner: Any = GridFile
    for part in issue["loc"][:-1]:
        owner = owner.model_fields[part].annotation
    return f"no field is called {path!r}{nearest(str(issue['loc'][-1]), list(owner.model_fields))}"


def _check_layout(file: GridFile) -> None:
    table, axes = file.table, list(file.axes)
    for place in ("rows", "columns"):
        for axis in getattr(table, place):
            _check_name(f"table.{place}", "axis", axis, axes)
    shown = (*table.rows, *table.columns)
    if sorted(shown) != sorted(axes):
        raise ValueError(
            f"table.rows and table.columns must name every axis once: axes are {axes}, "
            f"the table shows {list(shown)}"
        )
    for metric in table.metrics:
        _check_name("table.metrics", "metric", metric, METRICS)
    for split in table.splits:
        _check_name("table.splits", "split", split, SPLITS)
    for method, name in table.published.items():
        _check_name("table.published", "method", method, get_args(Method))
        _check_name("table.published", "published result", name, tuple(published_results()))


def _check_name(field: str, kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{field}: no {kind} is called {name!r}{nearest(name, list(known))}")


def _check_data(config: RunConfig, table: TableLayout) -> None:
    """Check that the run will find its data and read the splits that the table shows."""
    (images if config.data.kind == "images" else text).check_name(config.data.name)
    if not config.data.evaluate_test and any(split.startswith("test") for split in table.splits):
        raise ValueError(
            "table.splits shows the test split, which data.evaluate_test=false leaves unread; "
            "write splits: validation"
        )


def _expand(file: GridFile) -> Iterator[Point]:
    """Yield every point; ValueError says at which coordinates a config is impossible."""
    held = dict(file.base.set)
    if file.base.data is not None:
        held["data.name"] = file.base.data
    for values in itertools.product(*file.axes.values()):
        coordinates = dict(zip(file.axes, values, strict=True))
        overrides = {**held, **coordinates}
        method = overrides.pop("method", None)
        try:
            configs = tuple(
                resolve(file.base.preset, method, overrides, seed) for seed in file.base.seeds
            )
            _check_data(configs[0], file.table)
        except ValueError as error:
            where = ", ".join(f"{axis}={value}" for axis, value in coordinates.items())
            raise ValueError(f"at {where}: {error}") from None
        yield Point(coordinates, configs)
