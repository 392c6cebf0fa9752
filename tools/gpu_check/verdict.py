"""The gate of the cost report: bounds that every row must keep, and no regression of any column."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tools.gpu_check.cost import Cost


@dataclass(frozen=True)
class Violation:
    """One column of one row that is not as it must be."""

    cost: str
    column: str
    value: float | str
    bound: str

    def __str__(self) -> str:
        return f"{self.cost}: {self.column} is {self.value}, must be {self.bound}"


# Column, whether larger is worse, and the bound.
BOUNDS = (
    ("spill_bytes", True, 0),
    ("occupancy", False, 0.5),
    ("bytes_ratio", True, 1.1),
    ("conflict_degree", True, 1.1),
)
# Their shared memory is indexed by the data (a counter or a place per expert), so equal banks are a
# matter of chance: at N = 64 and random experts the degree of the first two is near 1.9, of the
# others 1.1. They move a few bytes a token.
INDEXED_BY_DATA = (
    "count_choices_kernel", "place_choices_kernel",
    "route_forward_subwarp_kernel", "route_backward_subwarp_kernel",
)  # fmt: skip
# A kernel that uses all the registers that half of an SM's warps leave a thread (in the wider
# routing three eighths or a quarter) may keep a few words on the stack: a share of its
# instructions, each a load or a store of four bytes. Two maps of sm_100 need more than 1 %.
ALL_REGISTERS, SPILLED_SHARE = (64, 80, 128), 0.015
# The kernels of the wider routing keep keys, scores and sums of a row in registers: with 16 or 32
# slots a lane (N > 256) no more than two blocks of them run on an SM.
WIDER, WIDER_OCCUPANCY = ("route_wide_", "group_norm_wide_"), 0.25
# The router of 64 experts in groups of 3 x 3, in float32 and bfloat16: close to what memory allows,
# and no spills. A B200's memory is too fast for bfloat16 forward: docs/cuda.md.
CLOSE_KERNEL, CLOSE_LAUNCH = "_subwarp_kernel<SubMap<8, 8, 3, false>", (" float32", " bfloat16")
NOT_CLOSE = ("route_forward_", "sm_100", " bfloat16")
CLOSE_BOUNDS = {"issue_ratio": 1.3, "spill_bytes": 0}
# Columns in which a row must not be worse than the committed one, and whether larger is worse.
# Threads, the launch and what follows from other columns are facts, not costs.
GUARDED = {
    "registers": True,
    "spill_bytes": True,
    "stack_bytes": True,
    "static_shared_bytes": True,
    "dynamic_shared_bytes": True,
    "occupancy": False,
    "sass_instructions": True,
    "ptx_instructions_per_token": True,
    "sectors_per_token": True,
    "bytes_per_token": True,
    "conflict_degree": True,
}


def _name(cost: Cost) -> str:
    return " ".join(cost.key)


def broken_bounds(costs: Sequence[Cost]) -> list[Violation]:
    """Return a violation per bound that a row breaks."""
    found = []
    for cost in costs:
        for column, larger_is_worse, bound in BOUNDS:
            value = getattr(cost, column)
            exempt = column == "conflict_degree" and cost.kernel.startswith(INDEXED_BY_DATA)
            if value is None or exempt:
                continue
            if column == "spill_bytes" and cost.registers in ALL_REGISTERS:
                bound = int(4 * SPILLED_SHARE * cost.sass_instructions)
            if column == "occupancy" and cost.kernel.startswith(WIDER):
                bound = WIDER_OCCUPANCY
            if (value > bound) if larger_is_worse else (value < bound):
                word = "at most" if larger_is_worse else "at least"
                found.append(Violation(_name(cost), column, value, f"{word} {bound}"))
        if is_close(cost):
            for column, bound in CLOSE_BOUNDS.items():
                value = getattr(cost, column)
                if value is not None and value > bound:
                    found.append(Violation(_name(cost), column, value, f"at most {bound}"))
    return found


def is_close(cost: Cost) -> bool:
    """Whether the row must keep CLOSE_BOUNDS."""
    kernel, architecture, element = NOT_CLOSE
    exempt = cost.kernel.startswith(kernel) and cost.launch.endswith(element)
    return (
        CLOSE_KERNEL in cost.kernel
        and cost.launch.endswith(CLOSE_LAUNCH)
        and not (exempt and cost.architecture == architecture)
    )


def regressions(costs: Sequence[Cost], committed: Sequence[Cost]) -> list[Violation]:
    """Return a violation per column that is worse than the committed row's, and per missing row.

    The counts are exact, so any change for the worse is one; ``--update`` accepts it. A row of
    another nvcc release says nothing of the source, so only its being there is asked for.
    """
    before = {cost.key: cost for cost in committed}
    after = {cost.key: cost for cost in costs}
    found = [
        Violation(_name(cost), "row", "absent", "there: the committed table has it")
        for key, cost in before.items()
        if key not in after
    ]
    for key, cost in after.items():
        if key not in before:
            found.append(Violation(_name(cost), "row", "added", "in the committed table"))
            continue
        if cost.nvcc != before[key].nvcc:
            continue
        for column, larger_is_worse in GUARDED.items():
            value, bound = getattr(cost, column), getattr(before[key], column)
            if (value > bound) if larger_is_worse else (value < bound):
                word = "at most" if larger_is_worse else "at least"
                found.append(Violation(_name(cost), column, value, f"{word} {bound} (committed)"))
    return found


def not_launched(kernels: Collection[str], costs: Sequence[Cost]) -> list[Violation]:
    """Return a violation per compiled kernel that no case launches: its cost would be unknown."""
    seen = {cost.kernel for cost in costs}
    return [
        Violation(kernel, "row", "absent", "there: no case launches this kernel")
        for kernel in sorted(set(kernels) - seen)
    ]
