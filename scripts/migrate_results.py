"""Moves a results folder of moge-bench 0.1 (runs/<hash>.json, grids/, tables/) to today's layout.

Usage: python scripts/migrate_results.py results. Records are migrated by config/identity.py, not
trained again; the speed figures that they held go to speed/<study>.json, and every grid becomes a
manifest. A study of which no run is found again is an error, and then nothing is removed.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from moge_bench.config import RECORDED
from moge_bench.config.identity import migrate
from moge_bench.runs.record import Record
from moge_bench.runs.speed import SpeedPass, SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.grid import load_grid
from moge_bench.study.manifest import make_manifest, save_manifest


def move(root: Path) -> str:
    """Migrate ``root``; return what was done in one sentence."""
    store, speeds = RecordStore(root), SpeedStore(root)
    old = sorted((root / "runs").glob("*.json"))
    passes: dict[str, dict[str, dict]] = defaultdict(dict)
    written = []
    for path in old:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = Record.model_validate(migrate(values), context=RECORDED)
        written.append(store.write(record))
        for study, speed in values["speed"].items():
            _add(passes[study], record, speed)
    for study, found in passes.items():
        for values in sorted(found.values(), key=lambda each: each["measured_at"]):
            speeds.add(study, SpeedPass.model_validate(values))
    grids = sorted((root / "grids").glob("*.yaml"))
    for path in grids:
        manifest = make_manifest(load_grid(path))
        if not any(store.path(run_id).exists() for run_id in manifest.run_ids):
            raise SystemExit(f"{path}: none of its runs is among the migrated records")
        save_manifest(root, manifest)
    for path in [*old, *grids]:
        path.unlink()
    return f"{len(written)} records, {len(passes)} speed files, {len(grids)} manifests in {root}"


def _add(passes: dict[str, dict], record: Record, speed: dict) -> None:
    """Put the figures of one record into the pass that measured them."""
    common = passes.setdefault(
        speed["key"],
        {"key": speed["key"], "measured_at": speed["measured_at"], "torch": speed["torch"],
         "build": speed["build"], "machine": {"cpu": speed["cpu"]}, "arms": {}},
    )  # fmt: skip
    names = ("tokens_per_second", "step_ms", "scoring_tokens_per_second", "peak_memory_mib",
             "peak_memory_source", "device", "threads")  # fmt: skip
    common["arms"][record.settings.arm_id] = {name: speed.get(name) for name in names}


if __name__ == "__main__":
    print(move(Path(sys.argv[1])))
