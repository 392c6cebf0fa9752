"""Whatever is wrong with a cache, it is a miss."""

import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from moge_bench import cache


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def homeless(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


def test_what_is_kept_comes_back(root):
    assert cache.read_text("a") is None
    cache.write_text("a", "é\n")
    assert cache.read_text("a") == "é\n"
    assert [path.name for path in (root / "moge-bench").iterdir()] == ["a"]


@pytest.mark.parametrize("kept", ["", "[1]", '{"text": 3, "sha256": "a"}', '{"text": "a"}'])
def test_what_is_not_whole_is_absent(root, kept):
    cache.write_text("a", "text")
    (root / "moge-bench" / "a").write_text(kept)
    assert cache.read_text("a") is None


def test_one_changed_letter_is_seen(root):
    cache.write_text("a", "text")
    path = root / "moge-bench" / "a"
    path.write_text(path.read_text().replace("text", "next"))
    assert json.loads(path.read_text()) and cache.read_text("a") is None


def test_without_a_home_nothing_is_kept(homeless):
    assert cache.cache_folder() is None
    cache.write_text("a", "text")
    assert cache.read_text("a") is None


def test_a_folder_that_cannot_be_made_or_written(root):
    (root / "moge-bench").write_text("a file stands in its place")
    cache.write_text("a", "text")
    assert cache.read_text("a") is None


def test_a_write_that_fails_leaves_no_rubbish(root, monkeypatch):
    def replace(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("os.replace", replace)
    cache.write_text("a", "text")
    assert list((root / "moge-bench").iterdir()) == []


def _write_often(letter):
    for _ in range(50):
        cache.write_text("a", letter * 10_000)


def test_two_processes_at_once_leave_a_whole_file(root):
    context = get_context("fork")
    processes = [context.Process(target=_write_often, args=(letter,)) for letter in "xy"]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert cache.read_text("a") in (None, "x" * 10_000, "y" * 10_000)
    assert [process.exitcode for process in processes] == [0, 0]
    assert cache.read_text("a") in ("x" * 10_000, "y" * 10_000)
    assert len(list((root / "moge-bench").iterdir())) == 1


def _count(folder):
    def make():
        with (Path(folder) / "made").open("a") as file:
            file.write("x")
        time.sleep(0.2)
        return "text"

    return cache.kept_text("slow", make)


def test_what_takes_long_is_made_once_whoever_asks_at_once(root):
    """As the processes of torchrun do."""
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_count, [str(root)] * 3)) == ["text"] * 3
    assert (root / "made").read_text() == "x"


def test_without_a_place_to_keep_it_each_makes_its_own(homeless, tmp_path):
    assert [_count(tmp_path), _count(tmp_path)] == ["text", "text"]
    assert (tmp_path / "made").read_text() == "xx"


def test_an_error_keeps_nothing(root):
    def fail():
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        cache.kept_text("slow", fail)
    assert _count(root) == "text"
