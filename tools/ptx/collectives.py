"""Instructions that the lanes of a warp execute together: shuffles, votes, reductions, matches.

Each waits until every lane of its mask has arrived; the machine decides which lanes are ready.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx.decode import Execute, Form, Lanes, opcode
from tools.ptx.findings import ABSENT_LANE, KernelFault
from tools.ptx.program import Operand
from tools.ptx.scalars import DTYPES, Array

Body = Callable[[Any, Lanes, Array], None]  # state, lanes that are ready, their groups


def _together(form: Form, mask: Operand, body: Body) -> Execute:
    """Run ``body`` once for the lanes whose whole mask is here; return those lanes."""
    read_mask, instruction = form.reader(mask, "b32"), form.instruction

    def execute(state: Any, lanes: Lanes) -> Lanes:
        masks = np.broadcast_to(read_mask(state, lanes), state.numbers(lanes).shape)
        ready, ready_masks = state.gather(instruction, lanes, masks)
        if not isinstance(ready, slice) and not len(ready):
            return ready
        # Masks of one warp are equal or disjoint, so the lowest lane names a group of lanes.
        lowest = np.bitwise_count((ready_masks & -ready_masks) - np.uint32(1))
        body(state, ready, state.warp_in_chunk[ready] * 32 + lowest)
        return ready

    return execute


@opcode("shfl")
def _shuffle(form: Form) -> Execute:
    form.one_of("sync")
    mode = form.one_of("up", "down", "bfly", "idx")
    form.type("b32")
    form.count(5)
    targets = form.vector(form.operands[0])
    write = form.writer(targets[0], "b32")
    write_found = [form.writer(target, "pred") for target in targets[1:]]
    value, index, clamp = (form.reader(operand, "b32") for operand in form.operands[1:4])
    mask, instruction = form.reader(form.operands[4], "b32"), form.instruction

    def shuffle(state: Any, lanes: Lanes, groups: Array) -> None:
        numbers, lane = state.numbers(lanes), state.lane_in_warp[lanes]
        by = index(state, lanes).astype(np.int64) & 31
        packed = clamp(state, lanes).astype(np.int64)
        segment, limit = packed >> 8 & 31, packed & 31
        lowest = lane & segment
        highest = lowest | (limit & ~segment)
        source = {
            "up": lane - by, "down": lane + by, "bfly": lane ^ by,
            "idx": lowest | (by & ~segment),
        }[mode]  # fmt: skip
        found = source >= highest if mode == "up" else source <= highest
        source = np.where(found, source, lane)
        present = mask(state, lanes).astype(np.int64) >> source & 1
        if not present.all():
            who = state.describe(numbers[np.argmin(present)])
            raise KernelFault(
                ABSENT_LANE, f"{who} reads a lane outside its mask: {instruction.where}"
            )
        everyone = np.empty(state.lanes, np.uint32)
        everyone[lanes] = value(state, lanes)
        write(state, lanes, everyone[numbers - lane + source])
        for write_one in write_found:
            write_one(state, lanes, found)

    return _together(form, form.operands[4], shuffle)


@opcode("vote")
def _vote(form: Form) -> Execute:
    form.one_of("sync")
    mode = form.one_of("ballot", "any", "all", "uni")
    kind = form.type("b32" if mode == "ballot" else "pred")
    form.count(3)
    write = form.writer(form.operands[0], kind)
    predicate, mask = form.reader(form.operands[1], "pred"), form.reader(form.operands[2], "b32")

    def vote(state: Any, lanes: Lanes, groups: Array) -> None:
        bit = np.uint32(1) << state.lane_in_warp[lanes].astype(np.uint32)
        ballot = np.zeros(state.warps * 32, np.uint32)
        np.bitwise_or.at(ballot, groups, np.where(predicate(state, lanes), bit, np.uint32(0)))
        mine, everyone = ballot[groups], mask(state, lanes)
        if mode == "ballot":
            write(state, lanes, mine)
        else:
            answers = {"any": mine != 0, "all": mine == everyone}
            answers["uni"] = answers["all"] | (mine == 0)
            write(state, lanes, answers[mode])

    return _together(form, form.operands[2], vote)


_REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


@opcode("redux")
def _reduce(form: Form) -> Execute:
    form.one_of("sync")
    name = form.one_of(*_REDUCTIONS)
    kind = form.type(*(("u32", "s32") if name in ("add", "min", "max") else ("b32",)))
    form.count(3)
    dtype, ufunc = DTYPES[kind], _REDUCTIONS[name]
    limits = np.iinfo(dtype)
    neutral = {"min": limits.max, "max": limits.min, "and": limits.max}.get(name, 0)
    write, value = form.writer(form.operands[0], kind), form.reader(form.operands[1], kind)

    def reduce(state: Any, lanes: Lanes, groups: Array) -> None:
        result = np.full(state.warps * 32, neutral, dtype)
        ufunc.at(result, groups, value(state, lanes))
        write(state, lanes, result[groups])

    return _together(form, form.operands[2], reduce)


@opcode("match")
def _match(form: Form) -> Execute:
    """The mask of lanes that hold this lane's value."""
    mode = form.one_of("any", "all")
    form.one_of("sync")
    kind = form.type("b32", "b64")
    form.count(3)
    targets = form.vector(form.operands[0])
    write = form.writer(targets[0], "b32")
    write_same = [form.writer(target, "pred") for target in targets[1:]]
    value, mask = form.reader(form.operands[1], kind), form.reader(form.operands[2], "b32")

    def match(state: Any, lanes: Lanes, groups: Array) -> None:
        values = np.broadcast_to(value(state, lanes), groups.shape)
        bits = np.uint32(1) << state.lane_in_warp[lanes].astype(np.uint32)
        order = np.lexsort((values, groups))
        change = (values[order][1:] != values[order][:-1]) | (
            groups[order][1:] != groups[order][:-1]
        )
        part = np.empty(len(order), np.int64)
        part[order] = np.concatenate(([0], np.cumsum(change)))
        equal = np.zeros(len(order), np.uint32)
        np.bitwise_or.at(equal, part, bits)
        result, everyone = equal[part], mask(state, lanes)
        same = result == everyone
        write(state, lanes, np.where(same, result, np.uint32(0)) if mode == "all" else result)
        for write_one in write_same:
            write_one(state, lanes, same)

    return _together(form, form.operands[2], match)


def warp_barrier(form: Form) -> Execute:
    """bar.warp.sync: of the whole warp, it orders memory among its lanes."""
    form.one_of("warp")
    form.one_of("sync")
    form.count(1)

    def pass_barrier(state: Any, lanes: Lanes, groups: Array) -> None:
        state.pass_warp_barrier(lanes)

    return _together(form, form.operands[0], pass_barrier)


@opcode("activemask")
def _active_mask(form: Form) -> Execute:
    form.type("b32")
    form.count(1)
    write = form.writer(form.operands[0], "b32")

    def active(state: Any, lanes: Lanes) -> None:
        write(state, lanes, state.mask_of(lanes)[state.warp_in_chunk[lanes]])

    return active
