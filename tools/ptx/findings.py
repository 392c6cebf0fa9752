"""What a run can find wrong, and the errors of the interpreter itself."""

from __future__ import annotations

from dataclasses import dataclass

RACE = "race"
OUT_OF_BOUNDS = "out-of-bounds"
MISALIGNED = "misaligned"
READ_ONLY = "write-to-input"
UNINITIALISED = "uninitialised-read"
BARRIER_DIVERGENCE = "barrier-divergence"
ABSENT_LANE = "absent-lane"  # a warp collective names or reads a lane that does not take part
DEADLOCK = "deadlock"
DIVISION_BY_ZERO = "division-by-zero"
TRAP = "trap"


@dataclass(frozen=True)
class Finding:
    """One bug of the kernel: its kind (a constant above), and a sentence that says where."""

    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class PtxError(Exception):
    """The interpreter cannot run this text or these arguments; the message says which and why."""


class KernelFault(Exception):
    """A kernel did something after which its results mean nothing; carries the finding."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.finding = Finding(kind, message)
