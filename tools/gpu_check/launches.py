"""What the launchers of csrc/cuda launch, recorded without a GPU.

The library is the launchers linked with launch_recorder.cpp instead of the CUDA runtime. Pointers
among the arguments are whatever the caller gave: nothing here or there follows them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Dim3 = tuple[int, int, int]
UNASKED_BYTES = 48 * 1024  # of shared memory, static and dynamic, that every kernel may have

_ON_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One kernel launch: mangled name, shape, dynamic shared memory, each argument's bytes.

    ``raised_bytes``: the limit of dynamic shared memory that the launcher has asked for, or None.
    """

    kernel: str
    grid: Dim3
    block: Dim3
    shared_bytes: int
    arguments: tuple[bytes, ...]
    raised_bytes: int | None = None

    @property
    def num_blocks(self) -> int:
        """Blocks in the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self) -> int:
        """Threads in a block."""
        return self.block[0] * self.block[1] * self.block[2]

    def check_shared(self, static_bytes: int) -> None:
        """Raise RuntimeError where a device would refuse the shared memory of this launch.

        A block has 48 KiB for its ``static_bytes`` and the dynamic ones together, unless the
        launcher has raised the limit of the latter (cudaFuncSetAttribute).
        """
        allowed = self.raised_bytes
        if allowed is None:
            allowed = UNASKED_BYTES - static_bytes
        if self.shared_bytes > allowed:
            raise RuntimeError(
                f"{self.kernel} is launched with {self.shared_bytes} bytes of dynamic shared "
                f"memory beside {static_bytes} static ones, allowed are {allowed}: "
                "see allow_shared in csrc/cuda/launcher.h"
            )


class LauncherLibrary:
    """The launchers as a loaded library; ``functions`` is what ctypes calls them through.

    Args:
        path: the library that Toolchain.launcher_library built.
        argument_sizes: bytes of each parameter of every kernel, by mangled name, as its PTX has it.
    """

    def __init__(self, path: Path, argument_sizes: Mapping[str, Sequence[int]]) -> None:
        self.functions = ctypes.CDLL(str(path))
        self._sizes = argument_sizes

    def record(self, call: Callable[[], int]) -> list[Launch]:
        """Run ``call``, which calls a launcher and returns its error code; return the launches.

        Raises RuntimeError where the launcher reports an error, or launches a kernel that
        ``argument_sizes`` does not know.
        """
        launches: list[Launch] = []
        unknown: list[str] = []

        @_ON_LAUNCH
        def on_launch(kernel, grid, block, shared_bytes, raised_bytes, arguments):
            name = kernel.decode()
            if name not in self._sizes:
                unknown.append(name)
                return 1
            values = tuple(
                ctypes.string_at(arguments[i], size) for i, size in enumerate(self._sizes[name])
            )
            raised = None if raised_bytes < 0 else raised_bytes
            shape = tuple(grid[:3]), tuple(block[:3])
            launches.append(Launch(name, *shape, shared_bytes, values, raised))
            return 0

        self.functions.record_launches(on_launch)
        try:
            code = call()
        finally:
            self.functions.record_launches(None)
        if unknown:
            raise RuntimeError(f"the launcher launched {unknown[0]}, of which there is no PTX")
        if code:
            raise RuntimeError(f"the launcher returned error {code}")
        return launches
