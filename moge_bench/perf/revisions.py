"""Checks out and builds a revision apart from the working tree, cached by what it is built from."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from moge_bench.cache import cache_folder
from moge_bench.system import check_writable, cxx_command, cxx_flags, digest_files, run_git

# Written last, with a digest of the libraries: a folder without it is a build that was interrupted.
BUILT = ".gate-built"
_DIRTY = "+dirty"
_FLAGS = ("CFLAGS", "CXXFLAGS", "MOGE_CXXFLAGS")  # what compilers are told from outside
# What the CPU's kernels are made of, as git's paths.
_KERNELS = ("csrc", "setup.py", ":(exclude)csrc/cuda")


@dataclass(frozen=True)
class Revision:
    """A built copy of the repository: its name, its commit ("working tree" if none), its folder."""

    name: str
    commit: str
    tree: Path
    key: str


def default_cache() -> Path:
    """Return the folder that holds built revisions, under XDG_CACHE_HOME or ~/.cache.

    Where there is no home, or none that can be written, a temporary folder, removed at the end:
    then every call builds anew.
    """
    folder = cache_folder()
    if folder is not None:
        try:
            check_writable(folder / "gate")
            return folder / "gate"
        except OSError:
            pass
    temporary = Path(tempfile.mkdtemp(prefix="moge-bench-gate-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def repository_root(start: Path) -> Path:
    """Return the top folder of the git checkout that holds ``start``; ValueError if none does."""
    return Path(run_git(start, "rev-parse", "--show-toplevel").decode().strip())


def resolve(repo: Path, ref: str) -> str:
    """Return the commit that ``ref`` names; ValueError says what git could not find.

    In a shallow clone (``git clone --depth``, and what CI checks out by default) it names that.
    """
    try:
        return run_git(repo, "rev-parse", "--verify", f"{ref}^{{commit}}").decode().strip()
    except ValueError:
        if run_git(repo, "rev-parse", "--is-shallow-repository").strip() != b"true":
            raise
    raise ValueError(
        f"{ref!r} is not in {repo}, which is a shallow clone: fetch the base with "
        "git fetch --unshallow"
    )


def read_at(repo: Path, ref: str | None, path: str) -> str | None:
    """Return the text of ``path`` in ``ref``, or in the working tree; None where it has none."""
    if ref is None:
        file = repo / path
        return file.read_text(encoding="utf-8") if file.exists() else None
    try:
        return run_git(repo, "show", f"{resolve(repo, ref)}:{path}").decode()
    except ValueError:
        return None


def anchor(repo: Path, head: str, days: int = 30) -> str:
    """Return what a drift is measured from: the last release before ``head``, or an old commit.

    It is the newest tag v* in the history of ``head`` that is not ``head`` itself; without one the
    newest commit of the main line that is ``days`` older than ``head``; the oldest where all are
    younger. Raises ValueError where ``head`` has no parent.
    """
    try:
        described = run_git(repo, "describe", "--tags", "--match", "v*", "--abbrev=0", f"{head}~1")
        return described.decode().strip()
    except ValueError:
        pass  # no release yet
    log = run_git(repo, "log", "--first-parent", "--format=%H %ct", head).decode().split()
    commits, times = log[::2], [int(seconds) for seconds in log[1::2]]
    if len(commits) < 2:
        raise ValueError(f"{head!r} has no parent in {repo}: there is nothing to have drifted from")
    old = [c for c, t in zip(commits[1:], times[1:], strict=True) if t <= times[0] - days * 86400]
    return old[0] if old else commits[-1]


def between(repo: Path, good: str, bad: str) -> list[str]:
    """Return the commits after ``good`` up to ``bad`` on its main line, oldest first.

    Raises ValueError unless ``good`` is an ancestor of ``bad`` on that line.
    """
    first, last = resolve(repo, good), resolve(repo, bad)
    log = run_git(repo, "log", "--first-parent", "--format=%H", last).decode().split()
    if first not in log[1:]:
        raise ValueError(
            f"good={good!r} is not before bad={bad!r} on its main line (git log --first-parent)"
        )
    return log[: log.index(first)][::-1]


def log(repo: Path, head: str) -> dict[str, tuple[int, str]]:
    """Return commit -> (its place, oldest first, and its subject) of all that ``head`` contains."""
    text = run_git(repo, "log", "--reverse", "--topo-order", "--format=%H %s", head).decode()
    lines = [line.partition(" ") for line in text.splitlines()]
    return {commit: (place, subject) for place, (commit, _, subject) in enumerate(lines)}


def kernel_commits(repo: Path, head: str) -> list[str]:
    """Return the commits of the main line that change the CPU's kernels, newest first.

    That is: csrc without csrc/cuda, or setup.py.
    """
    text = run_git(repo, "log", "--first-parent", "--format=%H", head, "--", *_KERNELS)
    return text.decode().split()


def same_sources(repo: Path, one: str, other: str) -> bool:
    """Say whether two commits have the same sources of the CPU's kernels."""
    return not run_git(repo, "diff", "--name-only", one, other, "--", *_KERNELS).strip()


def accepted_instructions(repo: Path, base: str, head: str) -> float | None:
    """Return the largest ``Accept-instructions`` of the commits after ``base``, or None.

    Raises ValueError for a trailer that is not a number.
    """
    form = "--format=%(trailers:key=Accept-instructions,valueonly)"
    commits = f"{resolve(repo, base)}..{resolve(repo, head)}"
    words = run_git(repo, "log", form, commits).decode().split()
    try:
        return max(map(float, words), default=None)
    except ValueError:
        raise ValueError(
            f"the trailer Accept-instructions of a commit in {base}..{head} must be a number such "
            f"as 1.08, got {', '.join(words)}"
        ) from None


def is_parent(repo: Path, base: str, head: str) -> bool:
    """Say whether the commit ``base`` is the first parent of the commit ``head``."""
    try:
        return run_git(repo, "rev-parse", "--verify", f"{head}^1").decode().strip() == base
    except ValueError:
        return False


def working_commit(repo: Path) -> str:
    """Return HEAD's commit, with "+dirty" where the working tree has uncommitted changes."""
    commit = resolve(repo, "HEAD")
    return f"{commit}{_DIRTY}" if run_git(repo, "status", "--porcelain").strip() else commit


def is_recordable(commit: str) -> bool:
    """Whether figures of ``commit`` go into the history: not those of a changed working tree."""
    return not commit.endswith(_DIRTY)


def snapshot(repo: Path, ref: str | None, folder: Path) -> str:
    """Copy a revision into ``folder`` and return its commit.

    ``ref=None`` takes the working tree: tracked and untracked files that git does not ignore.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if ref is None:
        names = run_git(repo, "ls-files", "-z", "-co", "--exclude-standard").decode().split("\0")
        for name in filter(None, names):
            if (repo / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(repo / name, folder / name)
        return working_commit(repo)
    commit = resolve(repo, ref)
    with tempfile.TemporaryFile() as archive:
        archive.write(run_git(repo, "archive", "--format=tar", commit))
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(folder, filter="data")
    return commit


def _imported(setup: Path, folder: Path) -> list[Path]:
    """Return the modules of ``folder`` that ``setup`` imports by name."""
    text = setup.read_text(encoding="utf-8") if setup.exists() else ""
    return [
        file
        for file in sorted(folder.glob("*.py"))
        if re.search(rf"^import {re.escape(file.stem)}\b", text, re.MULTILINE)
    ]


def build_key(tree: Path) -> str:
    """Return a digest of the sources of the package and of what they are compiled with."""
    version = subprocess.run([*cxx_command(), "--version"], capture_output=True, check=False).stdout
    files = [
        tree / "setup.py", *_imported(tree / "setup.py", tree / "scripts"),
        *(tree / "csrc").rglob("*"), *(tree / "moge_bench").rglob("*.py"),
    ]  # fmt: skip
    flags = [f"{name}={os.environ.get(name, '')}" for name in _FLAGS] + cxx_flags()
    built_with = (torch.__version__, sys.version, version.decode(errors="replace"), *flags)
    return digest_files((file for file in files if file.is_file()), tree, *built_with)


def build(repo: Path, ref: str | None, cache: Path, name: str) -> Revision:
    """Return ``ref`` built in ``cache``, from an earlier build of the same sources if there is one.

    Raises ValueError for an unknown ref or a revision without setup.py, RuntimeError with the end
    of the compiler's output for a build that fails.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as temporary:
        tree = Path(temporary) / "tree"
        commit = snapshot(repo, ref, tree)
        return build_tree(tree, commit, cache, name)


def build_tree(tree: Path, commit: str, cache: Path, name: str) -> Revision:
    """Build the sources in ``tree``, moving it to its place in ``cache``; see ``build``.

    The folder that holds ``tree`` is temporary: what was damaged in ``cache`` is moved there.
    """
    if not (tree / "setup.py").exists():
        raise ValueError(f"{name} ({commit}) has no setup.py: there is nothing to compare with")
    key = build_key(tree)
    home = cache / key
    if not _is_whole(home, key):
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        environment = {**os.environ, "MOGE_CUDA": "0"}  # what is compared here runs on the CPU
        result = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, check=False,
            errors="replace",  # compilers quote in the letters of their own locale
        )  # fmt: skip
        if result.returncode:
            tail = "\n".join((result.stdout + result.stderr).splitlines()[-20:])
            raise RuntimeError(f"building {name} ({commit}) failed:\n{tail}")
        built = {"commit": commit, "libraries": _libraries(tree)}
        (tree / BUILT).write_text(json.dumps(built))
        _move_into_place(tree, home, key)
    return Revision(name, commit, home, key)


def _libraries(tree: Path) -> str:
    return digest_files((tree / "moge_bench").glob("*.so"), tree)


def _is_whole(home: Path, key: str) -> bool:
    """Say whether ``home`` is a finished build with nothing changed, cut off or cleaned away."""
    try:
        built = json.loads((home / BUILT).read_text(encoding="utf-8"))
        return built["libraries"] == _libraries(home) and build_key(home) == key
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _move_into_place(tree: Path, home: Path, key: str) -> None:
    """Rename ``tree`` to ``home``, unless another process has built the same there meanwhile."""
    if _is_whole(home, key):  # and may be using it
        return
    if home.exists():
        home.rename(tree.with_name("damaged"))  # beside ``tree``, in what the caller removes
    try:
        tree.rename(home)
    except OSError:
        if not _is_whole(home, key):
            raise
