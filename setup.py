"""Builds moge_bench._C, the CPU extension, and moge_bench._cuda where nvcc is found (MOGE_CUDA).

torch must be installed first, and pip called with --no-build-isolation, so that the extension is
compiled against the torch it will run with. MOGE_CUDA=auto (the default) builds the CUDA library
where nvcc is found, 1 fails without nvcc, 0 never builds it. MOGE_COMPILE=0 installs the Python
part alone: the Makefile compiles in the source tree, where only what has changed is compiled again.
MOGE_CXXFLAGS: further flags of the CPU extension.
"""

import hashlib
import os
import shlex
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
GENERATED = ROOT / "build/generated"

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ModuleNotFoundError:
    sys.exit(
        "moge-bench is built against an installed torch: `pip install torch==2.13.0` first, then "
        "`pip install --no-build-isolation -e .` (or just `make build`)."
    )

sys.path.insert(0, str(ROOT / "scripts"))  # pip's build backend does not put this folder there
import build_cuda  # noqa: E402
import compiler_log  # noqa: E402

LOG = ROOT / "build/compile.log"
WITHOUT = "MOGE_COMPILE=0 installs what needs no compiler: the slow reference of every op."


def files(folders: tuple[str, ...], *suffixes: str) -> list[Path]:
    """The files with these suffixes in these folders, not below them."""
    return sorted(f for d in folders for f in (ROOT / d).iterdir() if f.suffix in suffixes)


def source_hash(paths: list[Path]) -> str:
    """The digest that names a build in records and caches.

    moge_bench.ops.extension computes the same to tell a stale build.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        name = path.relative_to(ROOT / "csrc").as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def write_header(name: str, macros: dict[str, str]) -> None:
    """Write the macros to a header; only the file that includes it is compiled again."""
    text = "".join(f'#define {macro} "{value}"\n' for macro, value in macros.items())
    build_cuda.write_if_changed(GENERATED / name, text)


CPU_FOLDERS = ("csrc", "csrc/cpu")
# No contraction: a fused multiply-add is written as one, so all instruction sets agree.
EXACT = ["-ffp-contract=off", "-fno-math-errno"]


def further_flags() -> list[str]:
    """Flags of MOGE_CXXFLAGS, after our own: tools/reliability compiles with sanitizers."""
    return shlex.split(os.environ.get("MOGE_CXXFLAGS", ""))


def cpu_extension() -> Extension:
    """moge_bench._C; csrc's other folders are not part of it."""
    digest = source_hash(files(CPU_FOLDERS, ".cpp", ".h"))
    write_header("moge_source_hash.h", {"MOGE_SOURCE_HASH": digest})
    return CppExtension(
        "moge_bench._C",
        [str(path.relative_to(ROOT)) for path in files(CPU_FOLDERS, ".cpp")],
        include_dirs=[str(ROOT / "csrc"), str(GENERATED)],
        depends=[str(path) for path in files(CPU_FOLDERS, ".h")],
        define_macros=[("MOGE_VERSION", '"0.1.0"')],
        # -Wno-psabi: no function between two files takes or returns a register.
        extra_compile_args=["-O3", *EXACT, "-fopenmp", "-g0", "-Wno-psabi", *further_flags()],
    )


def cuda_extension() -> Extension:
    """moge_bench._cuda, with a digest of its own."""
    shared = [ROOT / "csrc" / name for name in ("kernels.h", "plan.cpp", "plan.h")]
    digest = source_hash([*shared, *files(("csrc/cuda",), ".cpp", ".cu", ".cuh", ".h")])
    write_header("moge_cuda_facts.h", build_cuda.facts(digest))
    return build_cuda.extension(GENERATED)


class Build(BuildExtension):
    """BuildExtension that ends in one sentence where there is no compiler or the build fails."""

    def build_extensions(self) -> None:
        compiler = self.compiler.compiler_cxx[0]
        if shutil.which(compiler) is None:
            sys.exit(
                f"moge-bench needs a C++ compiler: {compiler!r} was not found; install g++ >= 10. "
                f"{WITHOUT}"
            )
        log = LOG.relative_to(ROOT)
        print(f"moge-bench: compiling; what the compilers say goes to {log}", flush=True)
        try:
            with compiler_log.written_to(LOG):
                super().build_extensions()
        except Exception as error:
            said = LOG.read_text(errors="replace")
            cause = str(error).splitlines()[0]
            sys.exit(
                f"{compiler_log.first_errors(said)}\nmoge-bench: building the extension failed "
                f"({cause}); the errors stand above, everything is in {log}. {WITHOUT}"
            )
        warnings = compiler_log.num_warnings(LOG.read_text(errors="replace"))
        print(f"moge-bench: built, {warnings} warnings in {log}")

    def build_extension(self, ext: Extension) -> None:
        if ext.name != build_cuda.NAME:
            return super().build_extension(ext)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build_cuda.build(ext), target)


extensions = []
if os.environ.get("MOGE_COMPILE") != "0":
    extensions.append(cpu_extension())
    if build_cuda.wanted():
        extensions.append(cuda_extension())
setup(ext_modules=extensions, cmdclass={"build_ext": Build})
