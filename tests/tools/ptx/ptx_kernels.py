"""The launchers of csrc/cuda on the PTX that nvcc makes of them, with torch tensors in and out.

The interface is that of tools.simt.kernels.Kernels, so the same cases run on both: its
arguments are given to the real launchers, and every kernel they launch is interpreted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence

import torch

from tools import ptx
from tools.gpu_check.architectures import BY_NAME
from tools.gpu_check.launches import LauncherLibrary
from tools.gpu_check.toolchain import Toolchain, find_nvcc
from tools.simt import buffers, build, kernels, launch

CSRC = build.ROOT / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
CACHE = build.ROOT / "build/gpu_check"  # shared with the cost report, which compiles the same
SM_80 = BY_NAME["sm_80"]
ARENA_BYTES = 1 << 24


class Buffers(buffers.Buffers):
    """The memory of one launcher's arguments, on the interpreter's device."""

    def __init__(self, shift: int) -> None:
        self.device, self.shift = ptx.Device(ARENA_BYTES), shift
        self.outputs: list[ptx.Buffer] = []

    def _place(self, name: str, num_bytes: int, access: int, offset: int) -> torch.Tensor:
        # row_stats is read and written in pairs, which launch.h demands to be aligned.
        buffer = self.device.empty(num_bytes, name, 0 if name == "row_stats" else offset)
        if access == launch.READ:
            self.device.fill_in(buffer, read_only=True)
        elif name != "workspace":
            self.outputs.append(buffer)
        return torch.from_numpy(self.device.bytes_of(buffer))

    def assert_guards_whole(self) -> None:
        """An access outside is a finding already; here: every output was written in full."""
        for buffer in self.outputs:
            assert self.device.is_written(buffer), f"{buffer.name} is not written in full"


class ArgumentSizes(Mapping[str, Sequence[int]]):
    """Bytes of each parameter by kernel; kernels are parsed when they are first asked for."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.modules = texts, {}

    def module(self, kernel: str) -> ptx.Module | None:
        """Return the module with ``kernel``, or None if there is none."""
        if kernel not in self.modules:
            homes = [text for text in self.texts if f".entry {kernel}(" in text]
            self.modules[kernel] = ptx.parse(homes[0], only={kernel}) if homes else None
        return self.modules[kernel]

    def __contains__(self, kernel: object) -> bool:
        return self.module(str(kernel)) is not None

    def __getitem__(self, kernel: str) -> Sequence[int]:
        return [parameter.size for parameter in self.modules[kernel].kernels[kernel].parameters]

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)


class Kernels(kernels.Kernels):
    """The launchers on one architecture's PTX; a finding of the interpreter is an error.

    ``races``: whether it looks for races. A barrier of part of a warp orders nothing for it.
    """

    races = True

    def __init__(self, architecture: str) -> None:
        nvcc = find_nvcc()
        assert nvcc is not None
        toolchain, target = Toolchain(nvcc, "", CACHE), BY_NAME[architecture]
        texts = [toolchain.ptx(source, CSRC, target).read_text() for source in SOURCES]
        self.sizes = ArgumentSizes(texts)
        self.launchers = LauncherLibrary(toolchain.launcher_library(SOURCES, CSRC), self.sizes)
        self.library = self.launchers.functions
        launch.declare(self.library)

    def buffers(self, shift: int = 0) -> Buffers:
        return Buffers(shift)

    def schedule(self, number: int) -> None:
        """Nothing to choose: the interpreter judges races whatever the order of the threads."""

    def _call(self, name: str, args, buffers: Buffers) -> None:
        function = getattr(self.library, f"moge_cuda_{name}")
        for recorded in self.launchers.record(lambda: function(ctypes.byref(args), None)):
            module = self.sizes.module(recorded.kernel)
            assert module is not None
            variables = module.kernels[recorded.kernel].variables
            recorded.check_shared(sum(v.size for v in variables if v.space == "shared"))
            ptx.run_kernel(
                module, recorded.kernel, recorded.grid, recorded.block, recorded.arguments,
                device=buffers.device, shared_bytes=recorded.shared_bytes, races=self.races,
            ).check()  # fmt: skip
        buffers.assert_guards_whole()
