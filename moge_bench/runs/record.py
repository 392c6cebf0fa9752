"""The record of one run: what it was, how well it went, on what. Evidence, never rewritten.

What is measured later, speed and memory, is kept apart (runs/speed.py).
"""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, FiniteFloat, ValidationInfo, model_validator

from moge_bench.config import Frozen, RunConfig, TextBackboneConfig, TextDataConfig
from moge_bench.config.identity import SCHEMA
from moge_bench.training.dose_curve import typical_dose

# The fields in which two runs of one config and seed, on one machine and tree, may differ.
VOLATILE_FIELDS = ("summary", "started", "wall_s", "peak_rss_mib")


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
    """The git commit, and whether the code differed from it; None outside a checkout.

    ``digest`` is of the files that can change a result (runs/provenance.py); None in records of
    schema 1, which did not have it.
    """

    commit: str | None
    dirty: bool | None
    digest: str | None = None


class Record(Frozen):
    """One run: what, how well, how fast, on what."""

    schema_: Literal[2] = Field(2, alias="schema")
    run_id: str = ""
    summary: str = Field("", description="the record in one sentence, for people")
    status: Literal["finished", "failed", "diverged"]
    error: RunError | None = None
    diverged_at: int | None = Field(None, description="optimiser step at which it was given up")
    settings: RunConfig
    seed: int
    metrics: list[MetricValue] = Field([])
    parameters: dict[str, int] = Field({})
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

    @model_validator(mode="before")
    @classmethod
    def _name(cls, values: Any, info: ValidationInfo) -> Any:
        """Fill in the run_id where none is given: of a new record, or of an older schema."""
        if isinstance(values, dict) and not values.get("run_id"):
            settings = RunConfig.model_validate(values.get("settings"), context=info.context)
            return {**values, "settings": settings, "run_id": settings.run_id}
        return values

    @model_validator(mode="after")
    def _check(self) -> Record:
        if self.run_id != self.settings.run_id:
            raise ValueError(
                f"run_id {self.run_id!r} is not that of its settings, {self.settings.run_id}"
            )
        if self.seed != self.settings.seed:
            raise ValueError(f"seed {self.seed} is not that of its settings, {self.settings.seed}")
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("a failed record, and no other, has an error")
        if (self.status == "diverged") != (self.diverged_at is not None):
            raise ValueError("a diverged record, and no other, has the step of it")
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

    def routing_value(self, name: str, split: str) -> float | None:
        """Return the mean of ``name`` over the layers of ``routing`` on ``split``, or None."""
        found = [layer.get(name) for layer in self.routing if layer.get("split") == split]
        values = [value for value in found if value is not None]
        return fmean(values) if values else None

    @property
    def dose(self) -> float | None:
        """The mean over the MoE layers of their ``typical_dose``, from the curves; or None.

        ``routing`` has one too, which in records before 2026-11-27 is the mean over the curve.
        """
        moe = self.settings.moe
        if moe is None or not any("dose" in layer for layer in self.routing):
            return None
        points = [(point.name, point.value) for point in self.curves]
        return fmean(typical_dose(points, block) for block in moe.blocks)


def label(config: RunConfig) -> str:
    """Return a short human name of a config: preset, method, experts, k, residual, h, seed."""
    parts = [config.preset, config.method]
    if config.moe is not None:
        parts += [f"N={config.moe.num_experts}", f"k={config.moe.top_k}"]
        if config.moe.residual.kind != "plain":
            parts.append(config.moe.residual.kind)
        if config.moe.score_function != "softmax":
            parts.append(config.moe.score_function)
        if config.moe.regularizer != "none":
            parts.append(f"weight={config.moe.regularizer_weight:g}")
        if config.moe.group is not None:
            parts += [f"h={config.moe.group.size}", f"lambda={config.moe.group.weight:g}"]
    return " ".join([*parts, f"seed={config.seed}"])


def summarize(record: Record) -> str:
    """Return the sentence that opens a record: what ran, how well, how fast, on what."""
    config, parts = record.settings, []
    if record.error is not None:
        parts.append(f"FAILED with {record.error.type}: {record.error.message}")
    split = "test" if config.data.evaluate_test else "validation"
    for metric in record.metrics:
        if metric.split == split and metric.step == config.training.steps:
            unit = _unit_of_perplexity(config) if metric.name == "perplexity" else metric.unit
            parts.append(f"{split} {metric.name} {metric.value:.4g} {unit}")
    if record.diverged_at is not None:
        parts.append(f"DIVERGED at step {record.diverged_at}")
    none = "no MoE layer" if config.moe is None else "no MoE layer ran"
    backends = ", ".join(f"{op}: {name}" for op, name in record.backends.items()) or none
    parts.append(
        f"trained in {record.wall_s:.0f} s on {record.machine.get('cpu', 'unknown CPU')}, "
        f"{record.device}, {record.threads} thread(s), {backends}"
    )
    return f"{label(config)} on {config.data.name}, {config.training.steps} steps: " + "; ".join(
        parts
    )


def _unit_of_perplexity(config: RunConfig) -> str:
    """Return what a perplexity is of, without which no two can be compared."""
    if not isinstance(config.data, TextDataConfig):
        return ""
    assert isinstance(config.model, TextBackboneConfig)  # RunConfig has checked the pair
    token = {"words": "word", "bytes": "byte", "bpe": "BPE token"}[config.data.tokenizer]
    context = config.model.context
    return f"a {token} (windows of {context}, stride {config.data.stride or context})"


def to_json(record: Record) -> dict[str, Any]:
    """Return the record as it is written: the JSON form, with its summary."""
    values = record.model_dump(mode="json", by_alias=True)
    return {**values, "schema": SCHEMA, "summary": summarize(record)}


def stable_part(record: Record) -> dict[str, Any]:
    """Return the record less ``VOLATILE_FIELDS``: equal for runs that must agree bit for bit."""
    values = record.model_dump(mode="json", by_alias=True)
    return {name: value for name, value in values.items() if name not in VOLATILE_FIELDS}
