"""The records of a results folder: runs/<ab>/<run_id>.json, a file a run, never seen half-written.

The same run is the same file on every machine, so folders merge by copying.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import ValidationError

from moge_bench.config import RECORDED, faults
from moge_bench.config.identity import migrate
from moge_bench.runs.record import Record, to_json
from moge_bench.system import write_atomically


class RecordStore:
    """The records under ``root``/runs; ``root`` need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"

    def path(self, run_id: str) -> Path:
        """Return where the record of ``run_id`` is or will be."""
        return self.runs / run_id[:2] / f"{run_id}.json"

    def read(self, run_id: str) -> Record | None:
        """Return the record, or None where there is none; ValueError names a damaged file."""
        path = self.path(run_id)
        return read_record(path) if path.exists() else None

    def write(self, record: Record) -> Path:
        """Write ``record`` so that a reader sees the old file or the whole of this one."""
        path = self.path(record.run_id)
        text = json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")
        return path

    def find(self, prefix: str) -> Record:
        """Return the one record whose run_id starts with ``prefix``; ValueError if not one."""
        digits = re.fullmatch("[0-9a-f]+", prefix)  # anything else might be a path or a pattern
        found = sorted(self.runs.glob(f"{prefix[:2]}*/{prefix}*.json")) if digits else []
        if self.path(prefix) in found:  # whatever else, a copy say, begins as it does
            found = [self.path(prefix)]
        if len(found) != 1:
            check_layout(self.root)
            names = ", ".join(path.stem for path in found[:5])
            some = f"{len(found)} records start with it: {names}" if found else "no record has it"
            raise ValueError(f"run id {prefix!r} in {self.root}: {some}")
        return read_record(found[0])


def read_record(path: Path) -> Record:
    """Read one record file, of this schema or an older one; ValueError names file and fault."""
    try:
        values = migrate(json.loads(path.read_text(encoding="utf-8")))
        record = Record.model_validate(values, context=RECORDED)
        if record.run_id != path.stem:
            raise ValueError(
                f"it holds the run {record.run_id}; a record's file has the name of its run"
            )
    except ValidationError as error:
        reason = faults(error, Record)[0]
        raise ValueError(f"{path} is not a record: {reason}; {_MEND}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not a record: {error}; {_MEND}") from None
    return record


def check_layout(root: Path) -> None:
    """Raise ValueError if ``root`` holds records or grids as moge-bench 0.1 left them."""
    old = [*(root / "grids").glob("*.yaml"), *filter(_is_flat, (root / "runs").glob("*.json"))]
    if old:
        raise ValueError(
            f"{root} has the layout of moge-bench 0.1 ({old[0].relative_to(root)}): run `python "
            f"scripts/migrate_results.py {root}` in a source checkout, which trains nothing again"
        )


def _is_flat(path: Path) -> bool:
    """Say whether the file is a record of schema 1, which stood in runs/ itself."""
    try:
        return "schema_version" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


_MEND = "move it away to run that run again"
