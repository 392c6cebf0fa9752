"""Speed and memory of a study's arms: results/speed/<study>.json, apart from training evidence.

A file holds passes. A pass timed all arms of the study in turns, in one process, on one machine
and build; measuring again on the same replaces its pass, on others adds one (perf/cells.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from moge_bench.config import Frozen, read_model
from moge_bench.system import held, write_atomically


class Quartiles(Frozen):
    """Median and quartiles of ``n`` measurements."""

    median: FiniteFloat
    lower: FiniteFloat
    upper: FiniteFloat
    n: int


class ArmSpeed(Frozen):
    """What a pass measured of one arm; freshly initialised, on a fixed batch."""

    tokens_per_second: Quartiles
    step_ms: Quartiles
    scoring_tokens_per_second: Quartiles | None = Field(
        None, description="forward pass alone, as in evaluation"
    )
    peak_memory_mib: FiniteFloat = Field(description="live tensor bytes in one training step")
    peak_memory_source: str
    device: str
    threads: int
    tf32: bool | None = Field(None, description="on a GPU: whether float32 was rounded to TF32")


class SpeedPass(Frozen):
    """One serial pass: conditions, and the figures of every arm by arm_id."""

    key: str = Field(description="digest of all that the figures depend on; perf/cells.py")
    measured_at: str
    machine: dict[str, Any]
    torch: str
    build: dict[str, Any] | None
    arms: dict[str, ArmSpeed]


class SpeedFile(Frozen):
    """The passes of a study, oldest first."""

    schema_: Literal[1] = Field(1, alias="schema")
    passes: tuple[SpeedPass, ...] = ()


class SpeedStore:
    """The speed files of a results folder."""

    def __init__(self, root: Path) -> None:
        self.root = root / "speed"

    def path(self, study: str) -> Path:
        """Return where the passes of ``study`` are or will be."""
        return self.root / f"{study}.json"

    def passes(self, study: str) -> tuple[SpeedPass, ...]:
        """Return the passes of ``study``, oldest first; ValueError names a damaged file."""
        path = self.path(study)
        if not path.exists():
            return ()
        mend = "delete it to time the study again"
        return read_model(path, SpeedFile, "a speed file", mend).passes

    def latest(self, study: str, arms: Collection[str]) -> SpeedPass | None:
        """Return the last pass that timed all of ``arms`` together, or else most of them."""
        passes = self.passes(study)
        wanted = set(arms)
        best = max((len(wanted & set(each.arms)) for each in passes), default=0)
        found = [each for each in passes if len(wanted & set(each.arms)) == best > 0]
        return found[-1] if found else None

    def add(self, study: str, measured: SpeedPass) -> Path:
        """Add a pass, in the place of an older one with the same key; several processes may."""
        path = self.path(study)
        with held(self.root):
            kept = [each for each in self.passes(study) if each.key != measured.key]
            file = SpeedFile(passes=(*kept, measured))
            values = file.model_dump(mode="json", by_alias=True)
            write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        return path
