"""The history of speeds: one JSON line per commit and case, appended, and a figure of it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moge_bench.perf.gate import Outcome
from moge_bench.perf.revisions import Revision


def entries(
    outcome: Outcome, base: Revision, head: Revision, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return one history entry per case of ``outcome``, for the commit of ``head``."""
    common = {
        "commit": head.commit, "base": base.commit, "build": head.key,
        "unix_time": int(time.time()),
        "device": facts.get("device"), "torch": facts.get("torch"),
    }  # fmt: skip
    result = []
    for decision in outcome.decisions:
        entry: dict[str, Any] = common | {
            "case": decision.case, "detector": decision.detector, "verdict": decision.verdict,
            "ratio_to_base": decision.ratio, "ratio_low": decision.low, "ratio_high": decision.high,
        }  # fmt: skip
        if decision.detector == "instructions":
            entry["instructions"] = outcome.head_instructions[decision.case.split("/", 1)[1]]
        else:
            entry["median_ms"] = outcome.head_ms[decision.case].median
        result.append(entry)
    return result


def append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
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


def read(path: Path) -> list[dict[str, Any]]:
    """Return the history, oldest first, one entry per commit and case: the last one appended.

    Raises ValueError naming the line that is not JSON.
    """
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    if not path.exists():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} line {number} is not JSON ({error}); delete that line"
            ) from None
        latest.pop((entry["commit"], entry["case"]), None)
        latest[entry["commit"], entry["case"]] = entry
    return list(latest.values())


def figure(history: list[dict[str, Any]], folder: Path, stem: str = "history") -> list[Path]:
    """Draw instructions per token (exact) and time per case over commits; return png and svg."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    commits = list(dict.fromkeys(entry["commit"] for entry in history))
    position = {commit: index for index, commit in enumerate(commits)}
    panes, axes = plt.subplots(2, 1, figsize=(12, 8), sharex=True, layout="constrained")
    kinds = ((True, "instructions per token"), (False, "median ms"))
    for axis, (exact, label) in zip(axes, kinds, strict=True):
        mine = [e for e in history if (e["detector"] == "instructions") is exact]
        for case in dict.fromkeys(entry["case"] for entry in mine):
            points = [entry for entry in mine if entry["case"] == case]
            if exact:
                values = [entry["instructions"] / int(case.rsplit(" ", 1)[1]) for entry in points]
            else:
                values = [entry["median_ms"] for entry in points]
            axis.plot([position[e["commit"]] for e in points], values, marker="o", label=case)
        axis.set_ylabel(label)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        if mine:
            axis.legend(fontsize=5, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    for each in (axes[1].yaxis.set_major_formatter, axes[1].yaxis.set_minor_formatter):
        each("{x:g}")
    axes[-1].set_xticks(range(len(commits)), [c[:8] for c in commits], rotation=60, fontsize=7)
    axes[-1].set_xlabel("commit, oldest first")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    for path in paths:
        panes.savefig(path, dpi=120)
    plt.close(panes)
    return paths
