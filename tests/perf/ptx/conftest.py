"""The cases and launch arguments of the emulator's tests serve the interpreter's too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "csrc/simt"))
