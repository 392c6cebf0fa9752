"""One row of the cost report: a kernel, an architecture, a launch; read and written as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

DIGITS = 4  # of every measured fraction, in the table and in comparisons


@dataclass(frozen=True)
class Cost:
    """What one kernel costs in one launch.

    Static facts are those of the cubin that ``nvcc`` (its release) made. Counts per token are of
    executed PTX (the interpreter's), over the blocks that were run. ``min_bytes_per_token`` is
    None for a kernel that only sums up what another one left; it has no minimum of its own.
    ``floor_ns_per_token`` is the least bytes over the GPU's peak bandwidth: no run is faster, none
    need be as fast. ``ptx_instructions_per_token`` is what ``tools.ptx.Counters.issued`` counts,
    ``issue_ns_per_token`` that over what all schedulers can issue: an estimate, since ptxas makes
    more or fewer machine instructions.
    """

    kernel: str
    architecture: str
    launch: str
    nvcc: str
    threads: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    static_shared_bytes: int
    dynamic_shared_bytes: int
    occupancy: float
    limited_by: str
    sass_instructions: int
    ptx_instructions_per_token: float
    sectors_per_token: float
    bytes_per_token: float
    min_bytes_per_token: float | None
    conflict_degree: float
    floor_ns_per_token: float | None
    issue_ns_per_token: float

    def __post_init__(self) -> None:
        for name in COLUMNS:
            value = getattr(self, name)
            if isinstance(value, float):
                object.__setattr__(self, name, round(value, DIGITS))

    @property
    def key(self) -> tuple[str, str, str]:
        """What two tables match rows by."""
        return self.kernel, self.architecture, self.launch

    @property
    def bytes_ratio(self) -> float | None:
        """Bytes over the minimum, or None where there is no minimum."""
        if self.min_bytes_per_token is None:
            return None
        return round(self.bytes_per_token / self.min_bytes_per_token, DIGITS)

    @property
    def issue_ratio(self) -> float | None:
        """Time to issue the instructions over that to move the least bytes; None without these."""
        if self.floor_ns_per_token is None:
            return None
        return round(self.issue_ns_per_token / self.floor_ns_per_token, DIGITS)


COLUMNS = tuple(field.name for field in fields(Cost))
_TYPES = {field.name: str(field.type) for field in fields(Cost)}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> Any:
    if _TYPES[name] == "str":
        return text
    if _TYPES[name] == "int":
        return int(text)
    return float(text) if text else None


def to_csv(costs: list[Cost]) -> str:
    """Return ``costs`` as CSV, sorted by kernel, architecture and launch."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cost in sorted(costs, key=lambda cost: cost.key):
        writer.writerow([_cell(getattr(cost, name)) for name in COLUMNS])
    return table.getvalue()


def read_csv(path: Path) -> list[Cost]:
    """Return the rows of ``path``; raise ValueError where its columns are not this version's."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            raise ValueError(
                f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(header)}; "
                "rewrite it with --update"
            )
        return [
            Cost(**{name: _value(name, text) for name, text in zip(COLUMNS, line, strict=True)})
            for line in reader
        ]
