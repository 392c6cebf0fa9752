"""Builds moge_bench._C, the CPU extension, with torch.utils.cpp_extension.

torch must be installed first, and pip called with --no-build-isolation, so that the extension is
compiled against the torch it will run with.
"""

import hashlib
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ModuleNotFoundError:
    sys.exit(
        "moge-bench is built against an installed torch: `pip install torch==2.13.0` first, then "
        "`pip install --no-build-isolation -e .` (or just `make build`)."
    )


def files(*suffixes: str) -> list[Path]:
    """The files of the extension; csrc's other folders are not part of it."""
    folders = [ROOT / "csrc", ROOT / "csrc/cpu"]
    return sorted(f for d in folders for f in d.iterdir() if f.suffix in suffixes)


def write_source_hash() -> Path:
    """Write the header that names the build in records and caches; return its folder.

    moge_bench.ops.extension computes the same digest to tell a stale build. Only the file that
    includes the header is compiled again when another source changes.
    """
    digest = hashlib.sha256()
    for path in files(".cpp", ".h"):
        name = path.relative_to(ROOT / "csrc").as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes())
    header = ROOT / "build/generated/moge_source_hash.h"
    text = f'#define MOGE_SOURCE_HASH "{digest.hexdigest()[:16]}"\n'
    if not header.is_file() or header.read_text() != text:
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text)
    return header.parent


class Build(BuildExtension):
    """BuildExtension that ends in one sentence where there is no compiler or the build fails."""

    def build_extensions(self) -> None:
        compiler = self.compiler.compiler_cxx[0]
        if shutil.which(compiler) is None:
            sys.exit(
                f"moge-bench needs a C++ compiler: {compiler!r} was not found; install g++ >= 10."
            )
        try:
            super().build_extensions()
        except Exception as error:
            sys.exit(f"moge-bench: building the extension failed ({error}); the compiler's own "
                     "message stands above.")  # fmt: skip


extension = CppExtension(
    "moge_bench._C",
    [str(path.relative_to(ROOT)) for path in files(".cpp")],
    include_dirs=[str(ROOT / "csrc"), str(write_source_hash())],
    depends=[str(path) for path in files(".h")],
    define_macros=[("MOGE_VERSION", '"0.1.0"')],
    # No contraction: a fused multiply-add is written as one, so every instruction set rounds alike.
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-g0"],
)
setup(ext_modules=[extension], cmdclass={"build_ext": Build})
