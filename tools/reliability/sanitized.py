"""The CPU extension under AddressSanitizer and UndefinedBehaviorSanitizer, in a tree of its own.

A copy of the package below build/reliability, compiled by the project's own setup.py with further
flags: the libraries of the checkout stay what they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from moge_bench.system import cxx_command, digest_files
from tools.simt import build as simt

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build/reliability"
SANITIZERS = "-fsanitize=address,undefined"
# -O1 keeps the checks cheap to compile; -g1 gives reports their lines.
FLAGS = f"-O1 -g1 -fno-omit-frame-pointer {SANITIZERS} -fno-sanitize-recover=undefined"
_COPIED = ("csrc", "moge_bench", "scripts", "setup.py", "pyproject.toml", "README.md")


def build() -> Path:
    """Return the folder of the sanitized build, up to date; RuntimeError says why there is none.

    The first time it takes some fifteen minutes of one core, then what has changed.
    """
    made_with = (FLAGS, torch.__version__, sys.version, simt.compiler_version())
    tree = HOME / f"sanitized-{digest_files([], None, *made_with)}"
    copy_tree(ROOT, tree)
    made = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=tree, capture_output=True,
        text=True, check=False,
        env=os.environ | {"MOGE_CUDA": "0", "MOGE_CXXFLAGS": FLAGS, "LDFLAGS": SANITIZERS},
    )  # fmt: skip
    if made.returncode != 0:
        raise RuntimeError(f"the sanitized build failed: {(made.stdout + made.stderr)[-2000:]}")
    (library,) = (tree / "moge_bench").glob("_C.*.so")
    if b"__asan_report_load" not in library.read_bytes():
        raise RuntimeError(f"{library} is not instrumented: MOGE_CXXFLAGS did not reach it")
    return tree


def copy_tree(root: Path, tree: Path) -> None:
    """Copy what is built from ``root`` to ``tree``, times included, and drop what is there no more.

    Compiled libraries of ``root`` stay where they are.
    """
    left_out = shutil.ignore_patterns("*.so", "__pycache__")
    for name in _COPIED:
        source, target = root / name, tree / name
        if not source.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            continue
        shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True)
        for path in target.rglob("*"):
            gone = not (source / path.relative_to(target)).exists()
            if gone and path.is_file() and path.suffix in (".py", ".cpp", ".h"):
                path.unlink()


def environment(tree: Path, **more: str) -> dict[str, str]:
    """Return the variables under which a Python process runs the build in ``tree``.

    The C++ library is preloaded too: a sanitizer that starts before it finds no function to throw
    with.
    """
    found = simt.environment("asan")
    library = subprocess.run(
        [*cxx_command(), "-print-file-name=libstdc++.so"], capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip
    return {
        **found,
        "LD_PRELOAD": f"{found['LD_PRELOAD']} {library}",
        "PYTHONPATH": f"{tree}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        **more,
    }
