"""The cost report as Markdown: what each column is, the constants of the floor, the rows."""

from __future__ import annotations

from collections.abc import Sequence

from tools.gpu_check.architectures import ARCHITECTURES
from tools.gpu_check.cost import Cost
from tools.gpu_check.verdict import BOUNDS, INDEXED_BY_DATA

LEGEND = """\
No GPU was used. Static columns are what ptxas and nvdisasm say of the cubin; `SASS` counts all
machine instructions of the kernel once, not how often they run. The columns per token are counted
while an interpreter runs the PTX of some blocks of the real launch, or of all where it is small:
`PTX` is warp instructions executed, but for moves that join two 32-bit registers to one of 64 bits
or part them, which a machine need not do; arithmetic on two floats at a time is one instruction,
whether or not the units take twice as long for it; `sectors` the 32-byte sectors that the requests
touch (the traffic between L1 and L2), `conflicts` shared-memory wavefronts over the fewest that the
same bytes need. `bytes` is the traffic of memory if the caches hold a sector while neighbouring
tokens use it and keep nothing for a second pass: for every tensor what was asked for, an address
once a request, or the sectors that it lies in where these are more; a tensor of at most 16 KiB is
moved once. `least` is the bytes that the operation must move (tools/gpu_check/cases.py has the
terms); a kernel that only adds up what another one left has none. `floor` is `least` over the peak
bandwidth of the data sheet: no run can be faster, and a real one will be slower. `issue` is `PTX`
over what the GPU's schedulers can issue: an estimate, for ptxas makes other instructions of them.
"""

_HEADER = ("kernel", "launch", "registers", "spill B", "shared B", "occupancy", "SASS", "PTX",
           "sectors", "bytes", "least", "ratio", "conflicts", "floor ns", "issue ns")  # fmt: skip


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _line(cost: Cost) -> str:
    shared = f"{cost.static_shared_bytes} + {cost.dynamic_shared_bytes}"
    cells = [
        f"`{cost.kernel}`", cost.launch, str(cost.registers), str(cost.spill_bytes), shared,
        f"{cost.occupancy:.0%} ({cost.limited_by})", str(cost.sass_instructions),
        _number(cost.ptx_instructions_per_token, 1), _number(cost.sectors_per_token, 2),
        _number(cost.bytes_per_token, 1), _number(cost.min_bytes_per_token, 1),
        _number(cost.bytes_ratio, 3), _number(cost.conflict_degree, 3),
        _number(cost.floor_ns_per_token, 3), _number(cost.issue_ns_per_token, 3),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def markdown(costs: Sequence[Cost], nvcc: str) -> str:
    """Return the report: legend, bounds, constants with their sources, one table per architecture.

    ``nvcc`` is the compiler's release: another one may count differently.
    """
    bounds = [
        f"{column} {'at most' if larger_is_worse else 'at least'} {bound}"
        for column, larger_is_worse, bound in BOUNDS
    ]
    lines = ["# Static cost of the CUDA kernels", "", f"nvcc {nvcc}. {LEGEND}"]
    lines += [f"Bounds: {', '.join(bounds)}; no column worse than the committed row."]
    lines += [
        f"{', '.join(INDEXED_BY_DATA)}: exempt from the bound on conflicts, since the experts of "
        "the data choose the banks.", "",
    ]  # fmt: skip
    lines += [f"- {a.name}, {a.gpu.name}: {a.gpu.source}" for a in ARCHITECTURES]
    for architecture in ARCHITECTURES:
        rows = [cost for cost in costs if cost.architecture == architecture.name]
        lines += ["", f"## {architecture.name} (floor: {architecture.gpu.name})", ""]
        lines += ["| " + " | ".join(_HEADER) + " |", "|---" * len(_HEADER) + "|"]
        lines += [_line(cost) for cost in sorted(rows, key=lambda cost: cost.key)]
    return "\n".join(lines) + "\n"
