"""Loads a library that build.py made, and tells its emulator of buffers and schedules."""

from __future__ import annotations

import ctypes
from pathlib import Path

READ, READ_WRITE, WRITE_FIRST = 0, 1, 2  # Permission of tools/simt/shadow.h
# In order, in reverse, and two orders drawn at every switch.
SCHEDULES = (0, -1, 1, 2)


def load(path: Path) -> ctypes.CDLL:
    """Return the library at ``path`` with the types of the emulator's functions."""
    library = ctypes.CDLL(str(path))
    library.simt_schedule.argtypes = [ctypes.c_long]
    library.simt_register.argtypes = [
        ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
    ]  # fmt: skip
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


def declare(library: ctypes.CDLL) -> None:
    """Give the functions of the launchers' library their types."""
    library.moge_cuda_last_error.restype = ctypes.c_char_p
    tokens, experts = ctypes.c_int64, ctypes.c_int32
    library.moge_cuda_route_workspace_bytes.argtypes = [tokens, experts]
    library.moge_cuda_group_norm_workspace_bytes.argtypes = [tokens]
    library.moge_cuda_sort_choices_workspace_bytes.argtypes = [tokens, experts]
    library.moge_cuda_bias_activation_backward_workspace_bytes.argtypes = [
        tokens, experts, ctypes.c_int64,
    ]  # fmt: skip
    for name in ("route", "group_norm", "sort_choices", "bias_activation_backward"):
        getattr(library, f"moge_cuda_{name}_workspace_bytes").restype = ctypes.c_int64


def launch_error(library: ctypes.CDLL) -> str:
    """Return the message of the last failed launch, or "" if none failed; asking clears it."""
    code = library.cudaGetLastError()
    return library.cudaGetErrorString(code).decode() if code else ""
