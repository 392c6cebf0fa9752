"""The kernels of csrc/cuda as one architecture's compiler made them: resources, SASS, PTX."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tools.gpu_check.architectures import Architecture
from tools.gpu_check.disassembly import Resources, parse_ptxas, parse_sass, short_names
from tools.gpu_check.toolchain import Toolchain
from tools.ptx import Module, parse


@dataclass(frozen=True)
class BuiltKernel:
    """One kernel: its short name, what ptxas gave it, its machine instructions, its PTX module."""

    name: str
    resources: Resources
    sass: Counter[str]
    module: Module


Built = dict[str, BuiltKernel]  # by mangled name


def build(
    toolchain: Toolchain, sources: list[Path], csrc: Path, architecture: Architecture
) -> Built:
    """Compile ``sources`` for ``architecture`` and return all their kernels.

    Raises RuntimeError where nvcc fails.
    """
    found: Built = {}
    for source in sources:
        ptx = toolchain.ptx(source, csrc, architecture)
        cubin, messages = toolchain.cubin(ptx, csrc, architecture)
        resources = parse_ptxas(messages)
        if not resources:
            continue
        sass = parse_sass(toolchain.disassemble(cubin))
        module = parse(ptx.read_text())
        for mangled, name in short_names(resources).items():
            found[mangled] = BuiltKernel(name, resources[mangled], sass[mangled], module)
    return found


def argument_sizes(built: Built) -> dict[str, list[int]]:
    """Return the bytes of every kernel's parameters, as its PTX declares them."""
    return {
        mangled: [parameter.size for parameter in kernel.module.kernels[mangled].parameters]
        for mangled, kernel in built.items()
    }
