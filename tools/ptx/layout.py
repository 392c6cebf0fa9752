"""What all blocks of a launch have in common: sizes, parameters, places of variables."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tools.ptx.decode import literal
from tools.ptx.findings import PtxError
from tools.ptx.memory import Buffer, Device, Region
from tools.ptx.program import Address, Kernel, Module, Symbol, Variable, Vector
from tools.ptx.scalars import DTYPES, Array

_ROW = 128  # bytes of one row of banks; shared variables start there, with a row between them
Argument = Buffer | int | float | bytes


class Layout:
    """A launch of ``kernel``; raises PtxError where it could not be launched."""

    def __init__(
        self, module: Module, kernel: Kernel, grid: tuple[int, int, int],
        block: tuple[int, int, int], arguments: list[Argument], shared_bytes: int, device: Device,
    ) -> None:  # fmt: skip
        self.kernel, self.grid, self.block = kernel, grid, block
        self.threads = block[0] * block[1] * block[2]
        self.blocks = grid[0] * grid[1] * grid[2]
        limit = kernel.max_threads or 1024
        if not 1 <= self.threads <= limit or self.blocks < 1:
            raise PtxError(f"{kernel.name}: block {block} of at most {limit} threads, grid {grid}")
        self.end = len(kernel.code)  # where the pc of a thread that has exited stands
        self.symbols: dict[str, int] = {}
        self.parameters = self._pack(arguments)
        self._place_variables(module, shared_bytes, device)

    def special_registers(self, thread: Array, block: Array) -> dict[str, Array]:
        """Return the special registers; ``thread`` in its block, ``block`` in the grid."""
        lane = (thread % 32).astype(np.uint32)
        registers = {"%laneid": lane, "%warpid": (thread // 32).astype(np.uint32)}
        for name, number, size in (("tid", thread, self.block), ("ctaid", block, self.grid)):
            parts = (number % size[0], number // size[0] % size[1], number // (size[0] * size[1]))
            for axis, part, extent in zip("xyz", parts, size, strict=True):
                registers[f"%{name}.{axis}"] = part.astype(np.uint32)
                registers[f"%n{name}.{axis}"] = np.array([extent], np.uint32)
        bit = np.uint64(1) << lane.astype(np.uint64)
        full, one = np.uint64(0xFFFFFFFF), np.uint64(1)
        masks = {"eq": bit, "lt": bit - one, "le": 2 * bit - one}
        masks |= {"gt": full - masks["le"], "ge": full - masks["lt"]}
        for relation, mask in masks.items():
            registers[f"%lanemask_{relation}"] = mask.astype(np.uint32)
        return registers

    def _pack(self, arguments: list[Argument]) -> Region:
        """The parameter space, and the symbols of the parameters."""
        wanted = self.kernel.parameters
        if len(arguments) != len(wanted):
            raise PtxError(
                f"{self.kernel.name} takes {len(wanted)} arguments, got {len(arguments)}"
            )
        raw = b""
        for parameter, argument in zip(wanted, arguments, strict=True):
            raw += b"\0" * (-len(raw) % parameter.align)
            self.symbols[parameter.name] = len(raw)
            raw += _bytes_of(parameter, argument)
        region = Region(len(raw))
        region.data[: len(raw)] = np.frombuffer(raw, np.uint8)
        region.valid[: len(raw)] = region.written[: len(raw)] = 1
        return region

    def _place_variables(self, module: Module, shared_bytes: int, device: Device) -> None:
        used = _symbols(self.kernel)
        shared = [v for v in self.kernel.variables if v.space == "shared"]
        shared += [v for v in module.variables if v.space == "shared" and v.name in used]
        top, valid = 0, []
        for variable in sorted(shared, key=lambda v: v.size == 0):  # the dynamic one comes last
            size = variable.size or shared_bytes
            self.symbols[variable.name] = top
            valid.append((top, size))
            if variable.size:
                top += -(-size // _ROW) * _ROW + _ROW
        end = max((start + size for start, size in valid), default=0)
        self.shared_stride = -(-end // _ROW) * _ROW + _ROW
        self.shared_valid = np.zeros(self.shared_stride, np.uint8)
        for start, size in valid:
            self.shared_valid[start : start + size] = 1
        self.local_stride = 0
        for variable in self.kernel.variables:
            if variable.space == "local":
                self.symbols[variable.name] = self.local_stride
                self.local_stride += -(-variable.size // 32) * 32
        for variable in module.variables:
            if variable.space in ("global", "const"):
                self.symbols[variable.name] = _device_variable(variable, device).address


def _bytes_of(parameter: Variable, argument: Argument) -> bytes:
    if isinstance(argument, Buffer):
        argument = argument.address
    if isinstance(argument, bytes):
        raw = argument
    elif parameter.type in ("f32", "f64"):
        raw = struct.pack("<f" if parameter.type == "f32" else "<d", argument)
    else:
        raw = (int(argument) & (1 << 8 * parameter.size) - 1).to_bytes(parameter.size, "little")
    if len(raw) != parameter.size:
        raise PtxError(f"{parameter.name} has {parameter.size} bytes, got {len(raw)}")
    return raw


def _symbols(kernel: Kernel) -> set[str]:
    found: set[str] = set()

    def collect(operand: Any) -> None:
        if isinstance(operand, Symbol):
            found.add(operand.name)
        elif isinstance(operand, Address):
            collect(operand.base)
        elif isinstance(operand, Vector):
            for item in operand.items:
                collect(item)

    for instruction in kernel.code:
        for operand in instruction.operands:
            collect(operand)
    return found


def _device_variable(variable: Variable, device: Device) -> Buffer:
    """The buffer of a module variable, made on first use; without values it is zero."""
    for buffer in device.buffers:
        if buffer.name == variable.name:
            return buffer
    dtype = DTYPES[variable.type]
    values = np.zeros(variable.size // dtype.itemsize, dtype)
    for index, text in enumerate(variable.values):
        values[index] = literal(text, variable.type)[0]
    return device.put(values, variable.name)
