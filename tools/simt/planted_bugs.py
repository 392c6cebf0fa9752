"""Runs planted bugs: in this process, or as a script in one that a sanitizer may end.

python -m tools.simt.planted_bugs LIBRARY NAME [--fixed] prints what the emulator reports of one.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from tools.simt import launch

FOLDER = Path(__file__).parent / "bugs"
MARKER = "<- named"


def run(library: ctypes.CDLL, name: str, fixed: bool) -> str:
    """Return the emulator's message, or "" if it has none."""
    # In one allocation, apart, so that an access past the end of one is not one of the other.
    memory = (ctypes.c_float * 512)(*([1.0] * 512))
    address = ctypes.addressof(memory) + 512
    out, values = address + -address % 16, address + -address % 16 + 768
    library.simt_forget()
    access = launch.WRITE_FIRST if name == "unwritten_output" else launch.READ_WRITE
    library.simt_register(b"out", out, 64 * 4, access)
    library.simt_register(b"in", values, 64 * 4, launch.READ)
    getattr(library, f"run_{name}")(int(fixed), ctypes.c_void_p(out), ctypes.c_void_p(values))
    return launch.launch_error(library)


def named_lines(name: str) -> list[str]:
    """Return "file:line" of every line of the bug's source that carries the marker."""
    text = (FOLDER / f"{name}.cu").read_text().splitlines()
    return [f"{name}.cu:{number}" for number, line in enumerate(text, 1) if MARKER in line]


if __name__ == "__main__":
    library = launch.load(Path(sys.argv[1]))
    print(run(library, sys.argv[2], "--fixed" in sys.argv))
