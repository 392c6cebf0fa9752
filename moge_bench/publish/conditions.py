"""What the numbers of a study were made under: what all arms share, what differs, what is missing.

A difference of conditions is a warning at the head: two code versions or two processors can move
a run as much as a seed does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from moge_bench.publish.layout import axis_title
from moge_bench.runs.record import Record, label
from moge_bench.study.frame import Arm, Results

# What a caption states where all arms agree in it; an arm without the setting has no say.
_STATED = (
    "preset", "data.name", "data.tokenizer", "training.steps", "training.batch_size",
    "training.learning_rate", "training.precision", "moe.blocks", "moe.num_experts", "moe.top_k",
    "moe.balance", "moe.aux_weight", "moe.capacity_factor", "moe.residual.kind", "moe.group.size",
    "moe.group.weight", "moe.group.border", "moe.group.reduction",
)  # fmt: skip
_UNSAID = (None, "no")  # a precision of "no" is the usual one
_MAX_LISTED = 10


def fixed_settings(results: Results) -> str:
    """Return what all arms share, in one line: "preset tiny-vit, data ..., steps 300"."""
    study = results.study
    found = []
    for path in dict.fromkeys((*_STATED, *study.base.set)):
        values: list[Any] = []
        for arm in results.arms:
            present, value = _at(arm.entry.settings, path)
            if present and value not in values:
                values.append(value)
        varied = path in study.axes and len(study.axes[path]) > 1
        if len(values) == 1 and values[0] not in _UNSAID and not varied:
            title = "data" if path == "data.name" else axis_title(path)
            found.append(f"{title} {_text(values[0])}")
    return ", ".join(found)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"({', '.join(map(str, value))})" if isinstance(value, list | tuple) else str(value)


def _at(values: Any, path: str) -> tuple[bool, Any]:
    for name in path.split("."):
        if not isinstance(values, dict) or name not in values:
            return False, None
        values = values[name]
    return True, values


def code_name(record: Record) -> str:
    """Return the digest of the code, or the commit of a record that has none (schema 1)."""
    if record.code.digest is not None:
        return f"digest {record.code.digest}"
    dirty = " (dirty)" if record.code.dirty else ""
    return f"commit {(record.code.commit or 'unknown')[:10]}{dirty}"


_CONDITIONS = {
    "code": code_name,
    "machine": lambda record: str(record.machine.get("cpu", "unknown")),
    "GPU": lambda record: str(record.machine.get("gpu") or "none"),
    "instruction set": lambda record: str(record.machine.get("instruction_set") or "not recorded"),
    "torch": lambda record: str(record.versions.get("torch", "unknown")),
    "device": lambda record: record.device,
    "threads": lambda record: str(record.threads),
}
# Arms differ in these by what they are (dense has no route), so they are told and not warned of.
_TOLD = {
    "backends": lambda record: ", ".join(f"{op}: {name}" for op, name in record.backends.items()),
    "trained": lambda record: record.started[:10],
}


class Conditions:
    """The conditions of a study's finished records, each record looked at once."""

    def __init__(self, results: Results) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.by_arm: dict[str, dict[str, frozenset[str]]] = {}
        self.compared = [
            (arm, results.baselines[arm.entry.arm_id])
            for arm in results.arms
            if arm.entry.arm_id in results.baselines
        ]
        for name, of in {**_CONDITIONS, **_TOLD}.items():
            of_arm = {
                arm.entry.arm_id: Counter(of(record) for record in arm.records.values())
                for arm in results.arms
            }
            self.counts[name] = sum(of_arm.values(), Counter())
            self.by_arm[name] = {arm_id: frozenset(found) for arm_id, found in of_arm.items()}

    @property
    def mixed(self) -> list[str]:
        """What differs between records and can move a result."""
        return [name for name in _CONDITIONS if len(self.counts[name]) > 1]

    def warnings(self) -> list[str]:
        """Return a sentence for each of ``mixed``, with the values."""
        return [
            f"Compare with care: records differ in {name}: {_listed(self.counts[name])}"
            f"{self._between(name)}."
            for name in self.mixed
        ]

    def _between(self, name: str) -> str:
        of = self.by_arm[name]
        apart = sum(of[a.entry.arm_id] != of[b.entry.arm_id] for a, b in self.compared)
        return (
            f"; {apart} of the {len(self.compared)} comparisons are between arms that differ in it"
            if apart
            else "; in every comparison both arms have the same"
        )

    def lines(self) -> list[str]:
        """Return every condition with its values, one line each."""
        return [
            f"{name}: {_listed(self.counts[name])}."
            for name in self.counts
            if any(self.counts[name])
        ]


def _listed(counts: Counter[str]) -> str:
    """Return "9 of a, 6 of b", the most frequent first; one value stands alone."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) == 1:
        return ordered[0][0]
    shown = [f"{count} of {value or 'none'}" for value, count in ordered[:_MAX_LISTED]]
    return ", ".join(shown) + (
        f" and {len(ordered) - _MAX_LISTED} others" if len(ordered) > _MAX_LISTED else ""
    )


def state_of(arm: Arm) -> str:
    """Return "" for an arm whose runs are all finished, or else "2 of 3; 1 diverged"."""
    total = len(arm.entry.runs)
    if len(arm.records) == total:
        return ""
    counts = {"failed": arm.count("failed"), "diverged": arm.count("diverged")}
    counts["missing"] = arm.missing
    found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{len(arm.records)} of {total}; {found}"


def problems(results: Results) -> list[str]:
    """Return sentences on what has no number: missing runs, then each that did not finish."""
    missing = sum(arm.missing for arm in results.arms)
    found = []
    if missing:
        runs, have = ("run", "has") if missing == 1 else ("runs", "have")
        found.append(
            f"Incomplete: {missing} {runs} {have} no record yet; moge-bench ablate of the study "
            "file trains what is missing."
        )
    ended = [record for arm in results.arms for record in arm.unfinished.values()]
    found += [_why(record) for record in ended[:_MAX_LISTED]]
    if len(ended) > _MAX_LISTED:
        found.append(f"{len(ended) - _MAX_LISTED} more did not finish: see runs.csv.")
    if results.speed is not None and (absent := _untimed(results.arms)):
        found.append(f"Not timed: {absent} of {len(results.arms)} arms are not in the speed pass.")
    return found


def _untimed(arms: Iterable[Arm]) -> int:
    return sum(arm.speed is None for arm in arms)


def _why(record: Record) -> str:
    if record.error is not None:
        reason = f"failed with {record.error.type}: {record.error.message}"
    else:
        reason = f"diverged at step {record.diverged_at}"
    return f"Not finished: {label(record.settings)} ({record.run_id}) {reason}."
