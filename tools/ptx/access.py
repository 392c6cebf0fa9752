"""Loads, stores and atomics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx.counters import ATOMIC, READ, WRITE
from tools.ptx.decode import Execute, Form, Lanes, opcode
from tools.ptx.scalars import DTYPES

_SPACES = ("global", "shared", "local", "param", "const")


def _space(form: Form) -> str:
    """Take the state space; .shared::cta and .param::entry are the plain ones."""
    form.rest = [part.removesuffix("::cta").removesuffix("::entry") for part in form.rest]
    space = form.one_of(*_SPACES, default="generic")
    form.flag("volatile")
    form.flag("relaxed")
    form.drop_hints()
    return space


def _vector_length(form: Form) -> int:
    return int(form.one_of("v2", "v4", "v8", default="v1")[1:])


@opcode("ld", "ldu")
def _load(form: Form) -> Execute:
    kind, space, length = form.type(), _space(form), _vector_length(form)
    form.count(2)
    targets, address = form.vector(form.operands[0]), form.address(form.operands[1])
    if len(targets) != length:
        raise form.unsupported(f"{len(targets)} targets")
    writes = [form.writer(target, kind, narrow=True) for target in targets]
    dtype, instruction = DTYPES[kind], form.instruction

    def load(state: Any, lanes: Lanes) -> None:
        width = dtype.itemsize * length
        region, offsets = state.touch(instruction, space, READ, address(state, lanes), lanes, width)
        for part, write in enumerate(writes):
            write(state, lanes, region.load(offsets + part * dtype.itemsize, dtype))

    return load


@opcode("st")
def _store(form: Form) -> Execute:
    kind, space, length = form.type(), _space(form), _vector_length(form)
    form.count(2)
    sources, address = form.vector(form.operands[1]), form.address(form.operands[0])
    if len(sources) != length or space in ("param", "const"):
        raise form.unsupported(f"a store of {len(sources)} values to {space} memory")
    reads = [form.reader(source, kind, narrow=True) for source in sources]
    dtype, instruction = DTYPES[kind], form.instruction

    def store(state: Any, lanes: Lanes) -> None:
        width = dtype.itemsize * length
        region, offsets = state.touch(
            instruction, space, WRITE, address(state, lanes), lanes, width
        )
        for part, read in enumerate(reads):
            values = np.broadcast_to(read(state, lanes), offsets.shape)
            region.store(offsets + part * dtype.itemsize, values)

    return store


def _increment(old: Any, limit: Any) -> Any:
    return old * 0 if old >= limit else old + 1


def _decrement(old: Any, limit: Any) -> Any:
    return limit if old == 0 or old > limit else old - 1


_UPDATES: dict[str, Callable[..., Any]] = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "exch": lambda old, value: value,
    "cas": lambda old, expected, value: value if old == expected else old,
    "inc": _increment, "dec": _decrement,
}  # fmt: skip


@opcode("atom", "red")
def _atomic(form: Form) -> Execute:
    """Lanes that meet at an address take turns in lane order."""
    kind, space = form.type(), _space(form)
    name = form.one_of(*_UPDATES)
    update, has_result = _UPDATES[name], form.name == "atom"
    form.count((4 if name == "cas" else 3) - (not has_result))
    first = int(has_result)
    address = form.address(form.operands[first])
    reads = form.readers(first + 1, kind)
    write = form.writer(form.operands[0], kind) if has_result else None
    dtype, instruction = DTYPES[kind], form.instruction
    if name in ("add", "min", "max") and kind[0] == "b":
        raise form.unsupported(f"{name} of untyped bits")

    def atomic(state: Any, lanes: Lanes) -> None:
        region, offsets = state.touch(
            instruction, space, ATOMIC, address(state, lanes), lanes, dtype.itemsize
        )
        places = offsets // dtype.itemsize
        values = [np.broadcast_to(read(state, lanes), places.shape) for read in reads]
        memory = region.data.view(dtype)
        old = np.empty(places.shape, dtype)
        for lane, place in enumerate(places):
            old[lane] = memory[place]
            memory[place] = update(memory[place], *(value[lane] for value in values))
        if write:
            write(state, lanes, old)

    return atomic


@opcode("prefetch", "membar", "fence", "nanosleep")
def _nothing(form: Form) -> Execute:
    """No effect here: memory is sequentially consistent, and fences do not order races away."""
    form.rest, form.types = [], []
    return lambda state, lanes: None
