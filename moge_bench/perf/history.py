"""The history of speeds: one JSON line per machine, commit and case, appended, never rewritten."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moge_bench.perf import machines, names
from moge_bench.perf.gate import Outcome
from moge_bench.perf.revisions import Revision
from moge_bench.perf.statistics import REGRESSION

Entry = dict[str, Any]


def entries(
    outcome: Outcome, base: Revision, head: Revision, facts: dict[str, Any], *, judged: bool = True
) -> list[Entry]:
    """Return one entry per case of ``outcome``, for the commit of ``head``, with its machine.

    A case whose alert was taken back on measuring again has the first ratio as ``cleared``. Without
    ``judged``, where base is not head's parent, the figures alone: whose the change is, is unknown.
    """
    compiler = machines.compiler_version()
    common = {
        "commit": head.commit, "build": head.key, "unix_time": int(time.time()),
        "device": facts.get("device"), "torch": facts.get("torch"),
    }  # fmt: skip
    labels = {names.region_id(label): label for label in outcome.head_instructions}
    result = []
    for decision in outcome.decisions:
        entry: Entry = common | {"case": decision.case, "detector": decision.detector}
        if judged:
            entry |= {
                "base": base.commit, "verdict": decision.verdict,
                "ratio_to_base": decision.ratio, "ratio_low": decision.low,
                "ratio_high": decision.high, "detectable": decision.detectable,
                "reason": decision.reason,
            }  # fmt: skip
        if decision.case in labels:
            label = labels[decision.case]
            entry["machine"] = machines.toolchain(compiler)
            entry["instructions"] = outcome.head_instructions[label]
            entry["num_tokens"] = names.num_tokens(label)
        elif decision.case in outcome.head_ms:
            summary = outcome.head_ms[decision.case]
            entry["machine"] = machines.machine(facts, compiler)
            entry["median_ms"] = summary.median
            entry["lower_quartile_ms"] = summary.lower_quartile
            entry["upper_quartile_ms"] = summary.upper_quartile
        else:
            continue  # head has it no more
        if judged and decision.case in outcome.cleared:
            entry["cleared"] = outcome.cleared[decision.case]
        result.append(entry)
    return result


def counted(counts: dict[str, int], revision: Revision) -> list[Entry]:
    """Return one entry per kernel region of ``revision`` that was counted and compared with none.

    ``counts`` is by the kernel driver's labels.
    """
    machine = machines.toolchain(machines.compiler_version())
    return [
        {
            "commit": revision.commit, "build": revision.key, "unix_time": int(time.time()),
            "machine": machine, "case": names.region_id(label), "detector": "instructions",
            "instructions": count, "num_tokens": names.num_tokens(label),
        }
        for label, count in counts.items()
    ]  # fmt: skip


def _later(earlier: Entry, entry: Entry) -> Entry:
    """Return what stands of two entries of one case, commit and machine."""
    if "verdict" in earlier and "verdict" not in entry:
        return earlier
    alerts = _alerts(earlier)
    if alerts and entry.get("verdict") != REGRESSION:
        return entry | {"cleared": max(alerts + _alerts(entry))}
    return entry


def _alerts(entry: Entry) -> list[float]:
    """Return the ratios at which an entry of times looked slower, whether that held or not."""
    if entry.get("detector") == "instructions":
        return []
    found = [entry["cleared"]] if "cleared" in entry else []
    return found + ([entry["ratio_to_base"]] if entry.get("verdict") == REGRESSION else [])


def append(path: Path, lines: Iterable[Entry]) -> None:
    """Append ``lines`` to the history at ``path`` in one write, under a lock: all or none.

    A file whose last line was cut off (a full disk, a kill) gets a line break first, so that the
    broken line stays alone.
    """
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                text = "\n" + text
        data = text.encode()
        if os.write(file.fileno(), data) != len(data):
            file.truncate(size)
            raise OSError(f"{path} took only a part of the history (disk full?); nothing was added")
        os.fsync(file.fileno())


def read(path: Path) -> list[Entry]:
    """Return the history, oldest first, one entry per machine, commit and case: the last appended.

    But one with a verdict stays where a later one has none, and a regression by time that a later
    verdict does not confirm is that entry's ``cleared``. An entry without a machine gets "unknown
    machine", which is like no other. Raises ValueError naming the line that is not JSON, or lacks
    its commit or case.
    """
    latest: dict[tuple[str, str, str], Entry] = {}
    if not path.exists():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            key = (entry.setdefault("machine", machines.UNKNOWN), entry["commit"], entry["case"])
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} line {number} is not JSON ({error}); delete that line"
            ) from None
        except (KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path} line {number} has no commit or no case; delete that line"
            ) from None
        earlier = latest.pop(key, None)
        latest[key] = entry if earlier is None else _later(earlier, entry)
    return list(latest.values())
