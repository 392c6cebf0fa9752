"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moge_bench.config import RunConfig


@dataclass(frozen=True)
class Preset:
    """A system that can be run by name.

    Attributes:
        name: what `moge-bench train` takes.
        system: its settings as a MoGE run, everything set; other methods drop what they lack.
        method: the method it means when none is given.
        about: the model in one line.
        reaches: the result to expect, with n and where it was measured; or that none is known.
        cost: time and memory of one run, and on what.
        tuned: method -> dotted settings chosen for it on validation data.
        for_one_method: whether no other method than its own may run it.
    """

    name: str
    system: RunConfig
    method: str
    about: str
    reaches: str
    cost: str
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    for_one_method: bool = False


def counted(flops: str, hours: str, work: str) -> str:
    """Return the cost of a run that nobody has made, by count (models/training_cost.py)."""
    hours = f"{hours} hours of an H100 at 30 % of its peak"
    return f"not measured; by count {flops} FLOPs, {hours}: {work}"
