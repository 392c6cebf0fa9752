"""What this package asks of the system it runs on: files, git, the processor. One way for each.

Lowest layer, beside ``ops.topography``: it imports nothing of the package, and no torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what the body writes there is synced and renamed.

    An OSError (a full disk, say) names ``path``. Whatever is raised leaves what was there intact,
    and no temporary file.
    """
    # Not tempfile's: its files are readable by their owner alone, and results are to be shared.
    # A number of its own: on a shared disk two machines have equal process ids.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all (``replaced``)."""
    with replaced(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of ``folder``, which is made, until the body ends.

    For files that are read, changed and written again. A killed process holds nothing.
    """
    import fcntl  # not on Windows, where the rest of the package can be imported

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Make ``folder`` and a file in it that goes at once; OSError names it where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        error.filename, error.filename2 = str(folder), None
        raise


def run_git(folder: Path, *arguments: str) -> bytes:
    """Return what git prints when run in ``folder``; ValueError says what it could not do."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    except FileNotFoundError:
        raise ValueError("git was not found: install it, revisions come from it") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"git {' '.join(arguments)} failed in {folder}: {error}") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise ValueError(f"git {' '.join(arguments)} failed in {folder}: {reason}")
    return done.stdout


@functools.cache
def cpu_name() -> str:
    """Return the processor's marketing name, or the architecture where it is not told."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Return the number of cores this process may run on.

    psutil has the same in ``Process().cpu_affinity()``, but not on macOS, and is not always there.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def digest_files(files: Iterable[Path], root: Path | None, *context: str) -> str:
    """Return 16 hex digits of the SHA-256 of ``context``, and the files' names and bytes.

    A name is the path below ``root``, or the file's name alone where ``root`` is None. ``context``:
    what else the files' use depends on, a compiler's version or its flags.
    """
    digest = hashlib.sha256()
    for text in context:
        digest.update(text.encode() + b"\0")
    for path in sorted(files):
        name = path.name if root is None else path.relative_to(root).as_posix()
        digest.update(name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:16]


_LAUNCHERS = ("ccache", "sccache", "distcc")


def cxx_command() -> list[str]:
    """Return the words that call the C++ compiler: those of $CXX, say "ccache g++", or g++."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def cxx_program() -> str:
    """Return the compiler itself in `cxx_command`: "/usr/bin/g++" of "ccache /usr/bin/g++ -m64"."""
    words = cxx_command()
    return next((word for word in words if os.path.basename(word) not in _LAUNCHERS), words[0])


def cxx_flags() -> list[str]:
    """Return the words behind the compiler in `cxx_command`, which decide what it makes too."""
    words = cxx_command()
    return words[words.index(cxx_program()) + 1 :]
