"""run_kernel: one launch of a kernel of a PTX module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.ptx.counters import Counters
from tools.ptx.findings import Finding, KernelFault, PtxError
from tools.ptx.layout import Argument, Layout
from tools.ptx.machine import Machine, decode
from tools.ptx.memory import Device
from tools.ptx.program import Module
from tools.ptx.races import RaceLog
from tools.ptx.scalars import DTYPES
from tools.ptx.state import ChunkState

_CHUNK_LANES = 8192  # threads that run together: enough that numpy's overhead does not matter
_CHUNK_BYTES = 1 << 27  # of registers
Extent = int | tuple[int, int] | tuple[int, int, int]


@dataclass
class Result:
    """What a launch cost (``counters``) and what was wrong with it (``findings``)."""

    counters: Counters
    findings: list[Finding]

    def check(self) -> Result:
        """Return self; raise PtxError that lists the findings if there are any."""
        if self.findings:
            name = self.counters.kernel.name
            raise PtxError("\n".join([f"{name}:", *map(str, self.findings)]))
        return self


def run_kernel(
    module: Module,
    name: str,
    grid: Extent,
    block: Extent,
    arguments: Sequence[Argument],
    *,
    device: Device,
    shared_bytes: int = 0,
    races: bool = True,
    blocks: range | None = None,
    step_limit: int = 10_000_000,
) -> Result:
    """Run kernel ``name`` of ``module`` on ``device`` and say what it cost and did wrong.

    Args:
        module: what ``parse`` returned.
        name: mangled name of the entry function.
        grid, block: extents, x first; missing ones are 1.
        arguments: one a parameter: a Buffer, an address, a number, or the bytes of a struct.
        device: holds the global memory; results are read from it with ``device.get``.
        shared_bytes: size of the dynamic shared memory.
        races: whether to look for data races (costs about as much time again).
        blocks: the blocks to run, consecutive ones, of the grid; None runs all. Counters then hold
            these blocks only.
        step_limit: instructions, counted once for all lanes that run together, before giving up.

    Returns:
        Result. After a finding that leaves no meaningful way on (out of bounds, misaligned,
        barrier divergence, deadlock, absent lane, trap) the kernel stops there.

    Raises:
        PtxError: if an instruction is not supported, or the launch is not one the device would
            accept; the message names it.
    """
    if name not in module.kernels:
        raise PtxError(f"no kernel {name}; the module has {', '.join(module.kernels) or 'none'}")
    kernel = module.kernels[name]
    steps = decode(kernel)
    layout = Layout(
        module, kernel, _three(grid), _three(block), list(arguments), shared_bytes, device
    )
    chosen = range(layout.blocks) if blocks is None else blocks
    if chosen.step != 1 or not 0 <= chosen.start <= chosen.stop <= layout.blocks:
        raise PtxError(f"blocks {chosen} of a grid of {layout.blocks}")
    counters = Counters(kernel, device.buffers, device.region.size // 32)
    findings: list[Finding] = []
    log = RaceLog("global", layout.threads) if races else None
    lane_bytes = sum(DTYPES[kind].itemsize for kind in kernel.register_types) + layout.local_stride
    chunk = max(1, min(_CHUNK_LANES, _CHUNK_BYTES // max(1, lane_bytes)) // layout.threads)
    try:
        for first in range(chosen.start, chosen.stop, chunk):
            count = min(chunk, chosen.stop - first)
            state = ChunkState(layout, first, count, device, counters, findings, log)
            try:
                Machine(steps, state, step_limit).run()
            finally:
                state.finish()
    except KernelFault as fault:
        findings.append(fault.finding)
    if log:
        findings += log.findings([instruction.where for instruction in kernel.code])
    counters.finish(device.owner)
    return Result(counters, findings)


def _three(extent: Extent) -> tuple[int, int, int]:
    x, *rest = extent if isinstance(extent, tuple) else (extent,)
    y, z = (*rest, 1, 1)[:2]
    return int(x), int(y), int(z)
