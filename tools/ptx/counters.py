"""What a launch cost: instructions by opcode and class, global sectors, shared wavefronts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tools.ptx.memory import Buffer
from tools.ptx.program import Instruction, Kernel, Vector
from tools.ptx.scalars import Array

SECTOR = 32  # bytes: the unit in which L2 and DRAM move global memory
BANKS = 32  # of 4 bytes each
READ, WRITE, ATOMIC = "read", "write", "atomic"

_CLASS_OF_OPCODE = {
    "ld": "load", "st": "store", "atom": "atomic", "red": "atomic",
    "bar": "barrier", "barrier": "barrier", "membar": "barrier", "fence": "barrier",
    "shfl": "warp", "vote": "warp", "redux": "warp", "match": "warp", "activemask": "warp",
    "bra": "control", "brx": "control", "ret": "control", "exit": "control", "trap": "control",
    "cvt": "conversion", "cvta": "move", "mov": "move", "selp": "move", "setp": "compare",
    "ex2": "special", "lg2": "special", "rcp": "special", "sqrt": "special", "rsqrt": "special",
    "tanh": "special", "sin": "special", "cos": "special",
}  # fmt: skip
_FLOATS = {"f16": "float", "f32": "float", "f32x2": "float", "f64": "double"}


def instruction_class(opcode: str) -> str:
    """Return the class of a full opcode such as ``fma.rn.f32``.

    One of load, store, atomic, barrier, warp, control, conversion, move, compare, special (the
    functions of the special function unit, and division), float, double, integer.
    """
    name, *rest = opcode.split(".")
    if name == "ld" and rest[0].split("::")[0] == "param":
        return "move"
    if name == "bar" and rest[0] == "warp":
        return "warp"
    if name == "div" and rest[-1] in _FLOATS:
        return "special"
    return _CLASS_OF_OPCODE.get(name) or _FLOATS.get(rest[-1] if rest else "", "integer")


def names_halves(instruction: Instruction) -> bool:
    """Whether it only makes a 64-bit register of two halves, or two of it.

    A machine has no such registers: it takes two neighbouring ones, and the compiler puts values
    where they are needed. What it moves all the same, it moves as it does for other instructions.
    """
    halves = any(isinstance(operand, Vector) for operand in instruction.operands)
    return instruction.opcode == "mov.b64" and halves


@dataclass
class Traffic:
    """Global accesses of one kind to one buffer.

    ``requests`` are warp-wide instructions, ``sectors`` the 32-byte sectors they touched (counted
    for every request), ``distinct_sectors`` those touched at least once in the launch, ``bytes``
    what was asked for, once for all lanes of a request that share an address.
    """

    requests: int = 0
    sectors: int = 0
    distinct_sectors: int = 0
    bytes: int = 0


@dataclass
class SharedTraffic:
    """Shared accesses of one kind: ``ideal`` wavefronts if no two lanes met in a bank."""

    requests: int = 0
    wavefronts: int = 0
    ideal: int = 0

    @property
    def conflict_degree(self) -> float:
        """1.0 without conflicts; 1.0 also where there was no access."""
        return self.wavefronts / self.ideal if self.ideal else 1.0


class Counters:
    """Counts of one launch, added up over its blocks.

    ``warps[i]`` says how often a warp issued instruction i, ``threads[i]`` how many threads its
    guard let execute it;
    ``traffic[buffer name, kind]`` and ``shared[kind]`` with kind "read", "write" or "atomic".
    """

    def __init__(self, kernel: Kernel, buffers: list[Buffer], sectors: int) -> None:
        self.kernel = kernel
        self.warps = np.zeros(len(kernel.code), np.int64)
        self.threads = np.zeros(len(kernel.code), np.int64)
        self.traffic: dict[tuple[str, str], Traffic] = {}
        self.shared: dict[str, SharedTraffic] = {}
        self._buffers = buffers
        self._touched: dict[str, Array] = {
            kind: np.zeros(sectors, bool) for kind in (READ, WRITE, ATOMIC)
        }

    def issued(self) -> int:
        """Executed warp instructions, without those of ``names_halves``."""
        code = zip(self.kernel.code, self.warps, strict=True)
        return sum(int(count) for instruction, count in code if not names_halves(instruction))

    def by_opcode(self) -> Counter[str]:
        """Executed warp instructions of each full opcode."""
        return self._sum(lambda instruction: instruction.opcode)

    def by_class(self) -> Counter[str]:
        """Executed warp instructions of each class; see ``instruction_class``."""
        return self._sum(lambda instruction: instruction_class(instruction.opcode))

    def _sum(self, key: Callable[[Instruction], str]) -> Counter[str]:
        total: Counter[str] = Counter()
        for instruction, count in zip(self.kernel.code, self.warps, strict=True):
            if count:
                total[key(instruction)] += int(count)
        return total

    def shared_conflict_degree(self) -> float:
        """Wavefronts of all shared accesses over those without conflicts."""
        total = SharedTraffic()
        for part in self.shared.values():
            total.wavefronts += part.wavefronts
            total.ideal += part.ideal
        return total.conflict_degree

    def count_global(
        self, kind: str, offsets: Array, warps: Array, width: int, owner: Array
    ) -> None:
        """Add one instruction's accesses of ``width`` bytes; ``owner`` maps sectors to buffers."""
        sectors = offsets // SECTOR
        self._touched[kind][sectors] = True
        distinct = _distinct(warps.astype(np.int64) << 40 | sectors)
        owners = owner[distinct & (1 << 40) - 1]
        requests = _distinct((distinct >> 40) << 20 | owners) & (1 << 20) - 1
        addresses = _distinct(warps.astype(np.int64) << 40 | offsets) & (1 << 40) - 1
        lanes = owner[addresses // SECTOR]
        for which in set(owners.tolist()):
            row = self.traffic.setdefault((self._buffers[which].name, kind), Traffic())
            row.requests += int((requests == which).sum())
            row.sectors += int((owners == which).sum())
            row.bytes += width * int((lanes == which).sum())

    def count_shared(
        self, kind: str, offsets: Array, warps: Array, lanes: Array, width: int
    ) -> None:
        """Add one instruction's accesses.

        A warp's request is served in one wavefront of 32 lanes for up to 4 bytes a lane, two of 16
        lanes for 8, four of 8 lanes for 16. Within one, different words of a bank take turns, and
        so do all lanes of an atomic that meet in a bank.
        """
        phases = max(1, width // 4)
        group = warps * phases + lanes * phases // 32
        first = group[0] - group[0] % phases
        words = (offsets // 4)[:, None] + np.arange(phases)
        keys = ((group - first)[:, None] << 32 | words).reshape(-1)
        if kind != ATOMIC:
            keys = _distinct(keys)
        banks = np.bincount((keys >> 32) * BANKS + (keys & (1 << 32) - 1) % BANKS)
        banks = np.pad(banks, (0, -len(banks) % BANKS)).reshape(-1, BANKS).max(1)
        row = self.shared.setdefault(kind, SharedTraffic())
        row.requests += len(_distinct(warps))
        row.wavefronts += int(banks.sum())
        row.ideal += int((banks > 0).sum())

    def finish(self, owner: Array) -> None:
        """Fill in the distinct sectors, once the launch is over."""
        for kind, touched in self._touched.items():
            counts = np.bincount(owner[touched], minlength=len(self._buffers))
            for buffer, count in zip(self._buffers, counts, strict=True):
                if count:
                    self.traffic[buffer.name, kind].distinct_sectors = int(count)


def _distinct(keys: Array) -> Array:
    """Sorted distinct integers: np.unique without its overhead."""
    keys = np.sort(keys)
    return keys[np.concatenate(([True], keys[1:] != keys[:-1]))]


def warps_in(warps: Array) -> int:
    """Number of different warps among sorted warp numbers."""
    return 1 + int(np.count_nonzero(warps[1:] != warps[:-1])) if len(warps) else 0
