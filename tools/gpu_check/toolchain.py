"""nvcc and nvdisasm: found or asked for, and run once per source, architecture and purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moge_bench.system import digest_files
from tools.gpu_check.architectures import Architecture
from tools.includes import included_files

# The flags of the shipped library, so that what is reported is what is shipped.
FLAGS = ("-std=c++17", "-O3")
RECORDER = Path(__file__).with_name("launch_recorder.cpp")


def find_nvcc() -> str | None:
    """Return nvcc's path: in $CUDA_HOME, on the path, or in /usr/local/cuda; None without it."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    return _find("nvcc", [Path(home) / "bin" for home in [*homes, "/usr/local/cuda"] if home])


def find_nvdisasm(nvcc: str | None = None) -> str | None:
    """Return nvdisasm's path: beside nvcc, on the path, or PyPI's; None without it."""
    installed = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    beside = [Path(nvcc).parent] if nvcc else []
    return _find("nvdisasm", [*beside, *sorted(installed.glob("*/bin"), reverse=True)])


def _find(tool: str, folders: Sequence[Path]) -> str | None:
    for folder in folders:
        if found := shutil.which(tool, path=str(folder)):
            return found
    return shutil.which(tool)


@dataclass(frozen=True)
class Toolchain:
    """The tools, and the folder that keeps what they made."""

    nvcc: str
    nvdisasm: str
    cache: Path

    @staticmethod
    def find(cache: Path) -> Toolchain:
        """Return the tools; raise RuntimeError that names what to install where one is missing."""
        nvcc = find_nvcc()
        if nvcc is None:
            raise RuntimeError(
                "nvcc was not found: install the CUDA toolkit 13, or set CUDA_HOME to it"
            )
        nvdisasm = find_nvdisasm(nvcc)
        if nvdisasm is None:
            raise RuntimeError(
                "nvdisasm was not found: pip install -c constraints.txt nvidia-cuda-nvdisasm"
            )
        return Toolchain(nvcc, nvdisasm, cache)

    def version(self) -> str:
        """Return nvcc's release, e.g. "13.0, V13.0.88"."""
        text = run([self.nvcc, "--version"])
        return text.partition("release ")[2].partition("\n")[0]

    def ptx(self, source: Path, include: Path, architecture: Architecture) -> Path:
        """Compile ``source`` to PTX for ``architecture`` and return the file."""
        flags = [f"-arch=compute_{architecture.number}", "-ptx", "-lineinfo"]
        return self.compile([source], include, flags, ".ptx")[0]

    def cubin(self, ptx: Path, include: Path, architecture: Architecture) -> tuple[Path, str]:
        """Assemble ``ptx``, as nvcc does on the way; return the cubin and what ptxas -v said."""
        flags = [f"-arch={architecture.name}", "-cubin", "-Xptxas", "-v"]
        return self.compile([ptx], include, flags, ".cubin")

    def launcher_library(self, sources: Sequence[Path], include: Path) -> Path:
        """Link the launchers of ``sources`` with the launch recorder; return the library."""
        # Device code is not run from this library: PTX of the oldest architecture is the quickest.
        # Symbolic: the recorder's functions, not those of a CUDA build of torch in this process.
        flags = ["-gencode", "arch=compute_80,code=compute_80", "-shared", "-Xcompiler", "-fPIC",
                 "-Xlinker", "-Bsymbolic", "-cudart", "none"]  # fmt: skip
        return self.compile([*sources, RECORDER], include, flags, ".so")[0]

    def disassemble(self, cubin: Path) -> str:
        """Return ``nvdisasm -c`` of ``cubin``."""
        return run([self.nvdisasm, "-c", str(cubin)])

    def compile(
        self, sources: Sequence[Path], include: Path, flags: Sequence[str], suffix: str
    ) -> tuple[Path, str]:
        """Run nvcc on ``sources`` unless the cache holds its result; return file and messages."""
        key = _key(sources, include, [*FLAGS, *flags, self.version()])
        target = self.cache / f"{sources[0].stem}-{key}{suffix}"
        log = target.with_suffix(".log")
        if not (target.exists() and log.exists()):
            self.cache.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{os.getpid()}-{target.name}")
            command = [self.nvcc, *FLAGS, *flags, "-I", str(include), "-o", str(partial)]
            log.write_text(run([*command, *map(str, sources)]))
            partial.replace(target)
        return target, log.read_text()


def _key(sources: Sequence[Path], include: Path, flags: Sequence[str]) -> str:
    """Return a hash of what the compiler reads: the sources, the headers they include, flags."""
    read = {path for source in sources for path in included_files(source, [include])}
    return digest_files(read, None, *flags)


def run(command: Sequence[str]) -> str:
    """Run ``command``; return its output and messages; raise RuntimeError with them if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed:\n{(result.stdout + result.stderr)[-4000:]}"
        )
    return result.stdout + result.stderr
