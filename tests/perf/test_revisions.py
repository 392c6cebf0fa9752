"""Built revisions: a damaged, closed or missing cache is a miss; a shallow clone is named."""

import shutil
import subprocess
from pathlib import Path

import pytest

from moge_bench.perf import report, revisions

SETUP = """
import pathlib
pathlib.Path("moge_bench/_C.so").write_bytes(b"library")
with open({log!r}, "a") as log:
    log.write("built\\n")
"""


@pytest.fixture
def repo(tmp_path):
    """A repository of two commits whose build writes one library and a line into builds.log."""
    root = tmp_path / "repo"
    (root / "csrc").mkdir(parents=True)
    (root / "moge_bench").mkdir()
    (root / "csrc/op.cpp").write_text("int f();")
    (root / "moge_bench/__init__.py").write_text("")
    (root / ".gitignore").write_text("*.so\n")
    (root / "setup.py").write_text(SETUP.format(log=str(tmp_path / "builds.log")))
    git(root, "init", "-q", "-b", "main")
    for message in ("first", "second"):
        git(root, "add", "-A")
        git(root, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", message,
            "--allow-empty")  # fmt: skip
    return root


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def builds(tmp_path):
    return (tmp_path / "builds.log").read_text().count("built")


@pytest.mark.parametrize("part", ["moge_bench/_C.so", "csrc/op.cpp", revisions.BUILT])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_build_is_made_again(repo, tmp_path, part, damage):
    cache = tmp_path / "cache"
    first = revisions.build(repo, None, cache, "head")
    revisions.build(repo, None, cache, "head")
    assert builds(tmp_path) == 1
    path = first.tree / part
    path.write_bytes(path.read_bytes()[:3]) if damage == "cut" else path.unlink()
    again = revisions.build(repo, None, cache, "head")
    assert again == first and builds(tmp_path) == 2
    assert (again.tree / "moge_bench/_C.so").read_bytes() == b"library"
    assert [path.name for path in cache.iterdir()] == [first.key]  # the damaged one is gone


def test_a_build_that_another_process_finished_meanwhile_is_left_in_place(repo, tmp_path):
    """It may be running from there: taking it away would take its library from under it."""
    cache = tmp_path / "cache"
    first = revisions.build(repo, None, cache, "head")
    mine = cache / "building-mine" / "tree"
    shutil.copytree(first.tree, mine)
    inode = first.tree.stat().st_ino
    revisions._move_into_place(mine, first.tree, first.key)
    assert first.tree.stat().st_ino == inode and mine.exists()


def test_without_a_home_a_temporary_folder_holds_the_builds(monkeypatch, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    folder = revisions.default_cache()
    assert folder.is_dir() and folder.name.startswith("moge-bench-gate-")
    (tmp_path / "moge-bench").write_text("a file stands in its place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert revisions.default_cache().name.startswith("moge-bench-gate-")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole"))
    assert revisions.default_cache() == tmp_path / "whole/moge-bench/gate"


def test_a_shallow_clone_is_named(repo, tmp_path):
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repo}", "shallow")
    with pytest.raises(ValueError, match=r"'HEAD~1' is not in .*shallow clone: .*--unshallow"):
        revisions.resolve(tmp_path / "shallow", "HEAD~1")
    with pytest.raises(ValueError, match=r"git rev-parse .* failed"):
        revisions.resolve(repo, "nowhere")


def test_without_git_it_is_named(repo, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="git was not found: install it"):
        revisions.resolve(repo, "HEAD")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"facts": {"set": "grid"}}'])
def test_a_report_that_is_damaged_or_another_is_not_resumed(tmp_path, content):
    (tmp_path / "bench_core.json").write_text(content)
    assert report.resume(tmp_path, "bench_core", {"set": "core"}) == []
