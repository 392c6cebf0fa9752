"""The machine: control flow and barriers of blocks that run in lock step.

Of lanes that stand at different instructions the lowest goes first, which joins branches where
they meet again. A group of lanes runs on until it branches apart, waits, or meets others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tools.ptx import access, arithmetic, bits, collectives, convert
from tools.ptx.counters import warps_in
from tools.ptx.decode import Execute, Form, Lanes, build
from tools.ptx.findings import BARRIER_DIVERGENCE, DEADLOCK, TRAP, KernelFault, PtxError
from tools.ptx.program import Instruction, Kernel, Literal, Register, Symbol
from tools.ptx.scalars import Array
from tools.ptx.state import ChunkState

_OPCODES = (access, arithmetic, bits, collectives, convert)  # importing them fills the table

PLAIN, COLLECTIVE, BRANCH, TABLE, EXIT, BARRIER = range(6)


@dataclass(frozen=True)
class Step:
    """A decoded instruction; ``run`` of a barrier completes it for the lanes of one block."""

    instruction: Instruction
    kind: int
    run: Execute
    targets: tuple[int, ...] = ()

    def active(self, state: ChunkState, lanes: Lanes) -> Lanes:
        """Return those of ``lanes`` whose guard lets them execute."""
        guard = self.instruction.guard
        if guard is None:
            return lanes
        holds = state.registers[guard.slot][lanes] != self.instruction.negated
        return lanes if holds.all() else state.numbers(lanes)[holds]


def decode(kernel: Kernel) -> list[Step]:
    """Return the steps of ``kernel``; PtxError names the first instruction not supported."""
    if kernel not in _decoded:
        _decoded[kernel] = [_decode(kernel, instruction) for instruction in kernel.code]
    return _decoded[kernel]


_decoded: WeakKeyDictionary[Kernel, list[Step]] = WeakKeyDictionary()


def _decode(kernel: Kernel, instruction: Instruction) -> Step:
    form = Form(instruction)
    name, nothing = form.name, lambda state, lanes: None
    if name == "bra":
        form.drop_hints()
        step = Step(instruction, BRANCH, nothing, (_label(form, kernel, form.operands[0]),))
    elif name == "brx":
        form.one_of("idx")
        form.drop_hints()
        table = form.operands[1]
        if not isinstance(table, Symbol) or not isinstance(form.operands[0], Register):
            raise form.unsupported("this branch table")
        names = kernel.branch_tables[table.name]
        targets = tuple(_label(form, kernel, Symbol(label)) for label in names)
        step = Step(instruction, TABLE, form.reader(form.operands[0], "u32"), targets)
    elif name in ("ret", "exit"):
        form.drop_hints()
        step = Step(instruction, EXIT, nothing)
    elif name == "trap":
        step = Step(instruction, PLAIN, _trap(instruction))
    elif name in ("bar", "barrier"):
        if "warp" in form.rest:
            step = Step(instruction, COLLECTIVE, collectives.warp_barrier(form))
        else:
            step = Step(instruction, BARRIER, _barrier(form))
    else:
        kind = COLLECTIVE if name in ("shfl", "vote", "redux", "match") else PLAIN
        return Step(instruction, kind, build(instruction))
    if form.rest:
        raise form.unsupported("modifier ." + ".".join(form.rest))
    return step


def _label(form: Form, kernel: Kernel, operand: object) -> int:
    if not isinstance(operand, Symbol) or operand.name not in kernel.labels:
        raise form.unsupported(f"target {operand}")
    return kernel.labels[operand.name]


def _trap(instruction: Instruction) -> Execute:
    def trap(state: ChunkState, lanes: Lanes) -> None:
        who = state.describe(state.numbers(lanes)[0])
        raise KernelFault(TRAP, f"{who}: {instruction.where}")

    return trap


def _barrier(form: Form) -> Execute:
    """bar.sync 0 and bar.red of the whole block."""
    form.drop_hints()
    mode = form.one_of("sync", "red")
    first = form.operands[0 if mode == "sync" else 1]
    if first != Literal("0") or form.count(1, 3) != (1 if mode == "sync" else 3):
        raise form.unsupported("a barrier other than number 0 of the whole block")
    if mode == "sync":
        return lambda state, lanes: None
    reduction = form.one_of("popc", "and", "or")
    functions: dict[str, Callable[[Array], Any]] = {"popc": np.sum, "and": np.all, "or": np.any}
    kind = form.type("u32" if reduction == "popc" else "pred")
    dtype = np.uint32 if kind == "u32" else bool
    write, read = form.writer(form.operands[0], kind), form.reader(form.operands[2], "pred")

    def complete(state: ChunkState, lanes: Lanes) -> None:
        votes = np.broadcast_to(read(state, lanes), lanes.shape)
        write(state, lanes, np.array([functions[reduction](votes)], dtype))

    return complete


class Machine:
    """Runs one chunk of blocks to its end."""

    def __init__(self, steps: list[Step], state: ChunkState, step_limit: int) -> None:
        self.steps, self.state, self.end = steps, state, len(steps)
        self.steps_left = step_limit
        self.parked = False  # whether lanes wait at a collective

    def run(self) -> None:
        """Execute until every lane has exited; KernelFault if that cannot happen."""
        state = self.state
        with np.errstate(all="ignore"):
            while True:
                places = np.where(state.waiting, self.end, state.pc)
                pc = int(places.min())
                if pc < self.end:
                    here = places == pc
                    if here.all():
                        self._advance(slice(None), pc, self.end)
                    else:
                        self._advance(np.flatnonzero(here), pc, int(places[~here].min()))
                elif state.waiting.any():
                    self._open_barriers()
                else:
                    return

    def _advance(self, lanes: Lanes, pc: int, limit: int) -> None:
        """Run ``lanes`` from ``pc`` until they reach ``limit``, part or wait."""
        state = self.state
        while pc < limit:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise PtxError(f"{state.layout.kernel.name}: more steps than step_limit allows")
            step = self.steps[pc]
            if step.kind == COLLECTIVE and self.parked:
                lanes = self._with_parked(lanes, pc)
            active = step.active(state, lanes)
            if not isinstance(active, slice) and not len(active):
                self._count(pc, lanes, active)
                pc += 1
            elif step.kind == PLAIN:
                step.run(state, active)
                self._count(pc, lanes, active)
                pc += 1
            elif step.kind == COLLECTIVE:
                done = step.run(state, active)
                self._count(pc, done, done)
                pc += 1
                if len(state.numbers(done)) < len(state.numbers(active)):
                    self._park(lanes, active, done, pc)
                    return
            elif step.kind == BRANCH:
                self._count(pc, lanes, active)
                if len(state.numbers(active)) < len(state.numbers(lanes)):
                    state.pc[lanes] = pc + 1
                    state.pc[active] = step.targets[0]
                    return
                pc = step.targets[0]
            else:
                self._leave(step, lanes, active, pc)
                return
        state.pc[lanes] = pc

    def _leave(self, step: Step, lanes: Lanes, active: Lanes, pc: int) -> None:
        """A step after which the lanes stop running together."""
        state = self.state
        self._count(pc, lanes, active)
        state.pc[lanes] = pc + 1
        if step.kind == EXIT:
            state.pc[active] = self.end
        elif step.kind == TABLE:
            index = step.run(state, active)
            if (index >= len(step.targets)).any():
                raise KernelFault(TRAP, f"index beyond the branch table: {step.instruction.where}")
            state.pc[active] = np.array(step.targets)[index]
        else:
            state.pc[active] = pc
            state.waiting[active] = True

    def _count(self, pc: int, issued: Lanes, active: Lanes) -> None:
        counters, state = self.state.counters, self.state
        counters.threads[pc] += len(state.numbers(active))
        if isinstance(issued, slice):
            counters.warps[pc] += state.warps
        else:
            counters.warps[pc] += warps_in(state.warp_in_chunk[issued])

    # Lanes that wait at a collective for others of their mask.

    def _with_parked(self, lanes: Lanes, pc: int) -> Lanes:
        parked = np.flatnonzero(self.state.waiting & (self.state.pc == pc))
        if not len(parked):
            return lanes
        self.state.waiting[parked] = False
        return np.union1d(self.state.numbers(lanes), parked)

    def _park(self, lanes: Lanes, active: Lanes, done: Lanes, after: int) -> None:
        state = self.state
        state.pc[lanes] = after
        rest = np.setdiff1d(state.numbers(active), state.numbers(done), assume_unique=True)
        state.pc[rest] = after - 1
        state.waiting[rest] = True
        self.parked = True

    # Block barriers.

    def _open_barriers(self) -> None:
        """Nobody can run: open the barriers that all threads of a block have reached."""
        state, opened = self.state, []
        for lanes in state.everyone.reshape(-1, state.layout.threads):
            waiting = lanes[state.waiting[lanes]]
            at = np.unique(state.pc[waiting])
            if not len(at) or any(self.steps[pc].kind != BARRIER for pc in at):
                continue
            if len(at) > 1 or len(waiting) < len(lanes):
                raise KernelFault(BARRIER_DIVERGENCE, self._standing(lanes))
            self.steps[at[0]].run(state, lanes)
            opened.append(lanes)
        if not opened:
            self._name_absent_lanes()
            block = state.block_in_chunk[np.argmax(state.waiting)]
            lanes = state.everyone[state.block_in_chunk == block]
            raise KernelFault(DEADLOCK, self._standing(lanes))
        freed = np.concatenate(opened)
        state.pc[freed] += 1
        state.waiting[freed] = False
        state.pass_block_barrier(freed)

    def _name_absent_lanes(self) -> None:
        """KernelFault if lanes wait at a collective for some that have exited by now."""
        state = self.state
        for pc in np.unique(state.pc[state.waiting]):
            if self.steps[pc].kind == COLLECTIVE:
                self.steps[pc].run(state, np.flatnonzero(state.waiting & (state.pc == pc)))

    def _standing(self, lanes: Array) -> str:
        """Where the threads of a block are."""
        parts = []
        for pc, count in zip(*np.unique(self.state.pc[lanes], return_counts=True), strict=True):
            place = "have exited" if pc == self.end else f"at {self.steps[pc].instruction.where}"
            parts.append(f"{count} threads {place}")
        block = self.state.describe(lanes[0]).split(" thread")[0]
        return f"{block}: " + ", ".join(parts)
