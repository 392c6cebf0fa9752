"""The record of one run: one JSON file, named by the hash of its config, never seen half-written.

A record answers, top to bottom: what ran, how well, how fast, on what. It is the only thing that
tables and figures read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from moge_bench.config import Frozen, RunConfig

SCHEMA_VERSION: Final = 1
# The fields in which two runs of one config and seed, on one machine and tree, may differ.
VOLATILE_FIELDS = ("summary", "started", "wall_s", "peak_rss_mib", "speed")


class MetricValue(Frozen):
    """One measured number; NaN and infinity are refused."""

    name: str
    value: FiniteFloat
    unit: str
    split: str
    step: int


class CurvePoint(Frozen):
    """One point of a curve over optimiser steps."""

    step: int
    name: str
    split: str
    value: FiniteFloat


class RunError(Frozen):
    """Why a run failed."""

    type: str
    message: str
    traceback: str = ""


class Code(Frozen):
    """The git commit, and whether the code differed from it; None outside a checkout."""

    commit: str | None
    dirty: bool | None


class Quartiles(Frozen):
    """Median and quartiles of ``n`` measurements."""

    median: FiniteFloat
    lower: FiniteFloat
    upper: FiniteFloat
    n: int


class Speed(Frozen):
    """What the serial, interleaved speed pass of one grid measured for one config."""

    key: str = Field(description="hash of all that the timing depends on; see perf/cells.py")
    tokens_per_second: Quartiles
    step_ms: Quartiles
    scoring_tokens_per_second: Quartiles | None = Field(
        None, description="forward pass alone, as in evaluation"
    )
    peak_memory_mib: FiniteFloat = Field(description="live tensor bytes in one training step")
    peak_memory_source: str
    threads: int
    device: str
    cpu: str
    torch: str
    build: dict[str, Any] | None
    measured_at: str
    compared_with: list[str] = Field(description="hashes of the configs timed in the same pass")


class Record(Frozen):
    """One run: what, how well, how fast, on what."""

    schema_version: Literal[1] = 1
    summary: str = Field("", description="the record in one sentence, for people")
    hash: str
    status: Literal["finished", "failed"]
    error: RunError | None = None
    config: RunConfig
    seed: int
    metrics: list[MetricValue] = Field([])
    parameters: dict[str, int] = Field({})
    speed: dict[str, Speed] = Field({}, description="one entry per grid that timed this config")
    peak_rss_mib: FiniteFloat | None = Field(None, description="of the process that trained")
    started: str
    wall_s: FiniteFloat
    device: str
    threads: int
    backends: dict[str, str] = Field({})
    checks: dict[str, Any] = Field({})
    code: Code
    versions: dict[str, str]
    machine: dict[str, Any]
    build: dict[str, Any] | None = None
    routing: list[dict[str, Any]] = Field([])
    curves: list[CurvePoint] = Field([])

    @model_validator(mode="after")
    def _check(self) -> Record:
        if self.hash != self.config.hash():
            raise ValueError(f"hash {self.hash!r} is not that of its config, {self.config.hash()}")
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("a failed record, and no other, has an error")
        for name in ("routing", "checks"):
            try:
                json.dumps(getattr(self, name), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} must hold plain finite numbers: {error}") from None
        return self

    def value(self, name: str, split: str) -> float | None:
        """Return the last value of metric ``name`` on ``split``, or None."""
        found = [m for m in self.metrics if m.name == name and m.split == split]
        return max(found, key=lambda m: m.step).value if found else None


def label(config: RunConfig) -> str:
    """Return a short human name of a config: preset, method, experts, k, residual, h, seed."""
    parts = [config.preset, config.method]
    if config.moe is not None:
        parts += [f"N={config.moe.num_experts}", f"k={config.moe.top_k}"]
        if config.moe.residual.kind != "plain":
            parts.append(config.moe.residual.kind)
        if config.moe.group is not None:
            parts += [f"h={config.moe.group.size}", f"lambda={config.moe.group.weight:g}"]
    return " ".join([*parts, f"seed={config.seed}"])


def summarize(record: Record) -> str:
    """Return the sentence that opens a record: what ran, how well, how fast, on what."""
    config, parts = record.config, []
    if record.error is not None:
        parts.append(f"FAILED with {record.error.type}: {record.error.message}")
    split = "test" if config.data.evaluate_test else "validation"
    for metric in record.metrics:
        if metric.split == split and metric.step == config.training.steps:
            parts.append(f"{split} {metric.name} {metric.value:.4g} {metric.unit}")
    for grid, speed in record.speed.items():
        parts.append(
            f"{speed.tokens_per_second.median:.0f} tokens/s and {speed.peak_memory_mib:.1f} MiB "
            f"in a training step (speed pass of grid {grid!r})"
        )
    backends = ", ".join(f"{op}: {name}" for op, name in record.backends.items()) or "no MoE layer"
    parts.append(
        f"trained in {record.wall_s:.0f} s on {record.machine.get('cpu', 'unknown CPU')}, "
        f"{record.device}, {record.threads} thread(s), {backends}"
    )
    return f"{label(config)} on {config.data.name}, {config.training.steps} steps: " + "; ".join(
        parts
    )


def stable_part(record: Record) -> dict[str, Any]:
    """Return the record less ``VOLATILE_FIELDS``: equal for runs that must agree bit for bit."""
    values = record.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in VOLATILE_FIELDS}


class RecordStore:
    """The records under ``root``/runs, one file per config and seed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"

    def path(self, run_hash: str) -> Path:
        """Return where the record of ``run_hash`` is or will be."""
        return self.runs / f"{run_hash}.json"

    def read(self, run_hash: str) -> Record | None:
        """Return the record, or None where there is none; ValueError names a damaged file."""
        path = self.path(run_hash)
        return read_record(path) if path.exists() else None

    def write(self, record: Record) -> Path:
        """Write ``record`` so that a reader sees the old file or the whole of this one."""
        record = record.model_copy(update={"summary": summarize(record)})
        text = json.dumps(
            record.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False
        )
        path = self.path(record.hash)
        write_atomically(path, text + "\n")
        return path


def read_record(path: Path) -> Record:
    """Read and validate one record file; ValueError names the file and what is wrong in it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.get("schema_version") if isinstance(values, dict) else None
        if found != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {found!r}, this version reads {SCHEMA_VERSION}")
        record = Record.model_validate(values)
        if record.hash != path.stem:
            raise ValueError(
                f"it holds the run {record.hash}; the file name must be the run's hash"
            )
    except ValidationError as error:
        issue = error.errors()[0]
        where = ".".join(str(part) for part in issue["loc"]) or "record"
        raise ValueError(f"{path} is not a record: {where}: {issue['msg']}; delete it to train "
                         "that cell again") from None  # fmt: skip
    except ValueError as error:
        raise ValueError(
            f"{path} is not a record: {error}; delete it to train that cell again"
        ) from None
    return record


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, sync it, and rename it into place.

    An OSError (a full disk, say) leaves what was at ``path`` intact, and no temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's: its files are readable by their owner alone, and results are to be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
