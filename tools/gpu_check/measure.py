"""From a case to rows: its launches recorded, their PTX run and counted, a row per kernel."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tools import ptx
from tools.gpu_check.architectures import Architecture
from tools.gpu_check.built import Built, BuiltKernel
from tools.gpu_check.cases import Case
from tools.gpu_check.cost import Cost
from tools.gpu_check.inputs import Inputs, workspace_bytes
from tools.gpu_check.launches import Launch, LauncherLibrary
from tools.gpu_check.occupancy import occupancy

SAMPLE_BLOCKS = 2
CACHED_BYTES = 16 * 1024  # of the 28 KiB or more that shared memory leaves to the first-level cache


@dataclass(frozen=True)
class Counts:
    """What one launch does, per token of the case.

    ``bytes`` are those that must pass between memory and the chip, as ``memory_bytes`` has it.
    """

    instructions: float
    sectors: float
    bytes: float
    conflict_degree: float


def memory_bytes(traffic: ptx.Traffic, buffer_bytes: int) -> int:
    """Return the bytes of one kind of access to one buffer that memory has to move.

    The caches are taken to hold a sector as long as neighbouring tokens use it, and to keep nothing
    for a second pass: the bytes that were asked for, or the sectors they lie in where these are
    more. A buffer that the first-level cache holds whole, such as a value per expert, is moved
    once, however often its values are asked for.
    """
    once = 32 * traffic.distinct_sectors
    return once if buffer_bytes <= CACHED_BYTES else max(traffic.bytes, once)


def count(case: Case, kernel: BuiltKernel, launch: Launch, device: ptx.Device) -> Counts:
    """Run ``launch``, or a sample of its blocks scaled to the whole grid; return its counts.

    Raises PtxError where the kernel does what a device would not allow.
    """
    blocks = _blocks(case, kernel, launch)
    result = ptx.run_kernel(
        kernel.module, launch.kernel, launch.grid, launch.block, launch.arguments, device=device,
        shared_bytes=launch.shared_bytes, races=False, blocks=blocks,
    )  # fmt: skip
    counters = result.check().counters
    traffic = counters.traffic
    sizes = {buffer.name: buffer.nbytes for buffer in device.buffers}
    share = launch.num_blocks / len(blocks) / case.num_tokens
    return Counts(
        instructions=counters.issued() * share,
        sectors=sum(row.sectors for row in traffic.values()) * share,
        bytes=sum(memory_bytes(row, sizes[name]) for (name, _), row in traffic.items()) * share,
        conflict_degree=counters.shared_conflict_degree(),
    )


def _same_code(kernel: BuiltKernel, mangled: str) -> str:
    """Return a hash that is equal for architectures whose PTX of this kernel is the same."""
    code = kernel.module.kernels[mangled].code
    text = [f"{i.opcode} {i.operands} {i.guard} {i.negated}" for i in code]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _cost(
    kernel: BuiltKernel, architecture: Architecture, launch: Launch, counts: Counts,
    *, nvcc: str, text: str, min_bytes: float | None,
) -> Cost:  # fmt: skip
    resources, gpu = kernel.resources, architecture.gpu
    launch.check_shared(resources.static_shared_bytes)
    resident = occupancy(
        architecture, threads=launch.threads, registers=resources.registers,
        shared_bytes=resources.static_shared_bytes + launch.shared_bytes,
    )  # fmt: skip
    issue_rate = gpu.num_sms * architecture.partitions * gpu.clock  # warp instructions a second
    return Cost(
        kernel=kernel.name, architecture=architecture.name, launch=text, nvcc=nvcc,
        threads=launch.threads, registers=resources.registers,
        spill_bytes=resources.spill_bytes, stack_bytes=resources.stack_bytes,
        static_shared_bytes=resources.static_shared_bytes,
        dynamic_shared_bytes=launch.shared_bytes,
        occupancy=resident.share, limited_by=resident.limited_by,
        sass_instructions=kernel.sass.total(),
        ptx_instructions_per_token=counts.instructions, sectors_per_token=counts.sectors,
        bytes_per_token=counts.bytes, min_bytes_per_token=min_bytes,
        conflict_degree=counts.conflict_degree,
        floor_ns_per_token=None if min_bytes is None else min_bytes / gpu.bandwidth * 1e9,
        issue_ns_per_token=counts.instructions / issue_rate * 1e9,
    )  # fmt: skip


def measure(
    case: Case, built: Mapping[Architecture, Built], library: LauncherLibrary, csrc: Path,
    nvcc: str,
) -> list[Cost]:  # fmt: skip
    """Return a row for every kernel that ``case`` launches and every architecture.

    The kernel whose name starts with ``case.kernel`` does the work of the tokens: it gets the least
    bytes, and only some of its blocks are run where the case allows it. The others run whole.
    """
    functions = library.functions
    launcher = getattr(functions, f"moge_cuda_{case.op}")
    costs = []
    known: dict[tuple[str, ...], list[Counts]] = {}
    inputs: Inputs | None = None
    for architecture, kernels in built.items():
        if inputs is None or not case.sampled:  # a pass in place needs what it has not yet changed
            inputs = Inputs(case, csrc, workspace_bytes(case, functions))
            launches = library.record(partial(launcher, ctypes.byref(inputs.struct), None))
        code = tuple(_same_code(kernels[launch.kernel], launch.kernel) for launch in launches)
        if code not in known:
            known[code] = [
                count(case, kernels[launch.kernel], launch, inputs.device) for launch in launches
            ]
        for launch, counts in zip(launches, known[code], strict=True):
            kernel = kernels[launch.kernel]
            minimum = case.min_bytes_per_token if _is_main(case, kernel) else None
            costs.append(
                _cost(
                    kernel, architecture, launch, counts,
                    nvcc=nvcc, text=str(case), min_bytes=minimum,
                )
            )  # fmt: skip
    return costs


def _is_main(case: Case, kernel: BuiltKernel) -> bool:
    return kernel.name.startswith(case.kernel)


def _blocks(case: Case, kernel: BuiltKernel, launch: Launch) -> range:
    sampled = case.sampled and _is_main(case, kernel)
    return range(min(SAMPLE_BLOCKS, launch.num_blocks) if sampled else launch.num_blocks)
