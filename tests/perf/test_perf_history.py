"""The history file: append-only, whole lines or nothing, one entry per commit and case."""

import json
import os
from multiprocessing import get_context

import pytest

from moge_bench.perf import history


def line(commit: str, case: str = "c", **extra):
    return {"commit": commit, "case": case, "detector": "time", "median_ms": 1.0} | extra


def test_append_never_rewrites(tmp_path):
    path = tmp_path / "deep" / "history.jsonl"
    history.append(path, [line("a")])
    before = path.read_bytes()
    history.append(path, [line("b"), line("b", "d")])
    assert path.read_bytes().startswith(before)
    assert [json.loads(text)["commit"] for text in path.read_text().splitlines()] == ["a", "b", "b"]


def test_the_last_entry_of_a_commit_and_case_counts(tmp_path):
    path = tmp_path / "history.jsonl"
    history.append(path, [line("a", median_ms=1.0), line("b")])
    history.append(path, [line("a", median_ms=2.0)])
    entries = history.read(path)
    assert [(e["commit"], e["median_ms"]) for e in entries] == [("b", 1.0), ("a", 2.0)]
    assert history.read(tmp_path / "none.jsonl") == []


def test_a_cut_off_line_stays_alone(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"commit": "a", "ca')
    history.append(path, [line("b")])
    assert path.read_text().splitlines()[1].startswith("{")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        history.read(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    history.append(path, [line("a")])
    before, real = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    with pytest.raises(OSError, match="nothing was added"):
        history.append(path, [line("b")])
    assert path.read_bytes() == before


def _append_many(path, name):
    for index in range(30):
        history.append(path, [line(f"{name}{index}", "x" * 500)])


def test_concurrent_appends_do_not_mix(tmp_path):
    path = tmp_path / "history.jsonl"
    context = get_context("fork")
    processes = [context.Process(target=_append_many, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(history.read(path)) == 90


def test_figure_draws_both_detectors(tmp_path):
    entries = [
        line("a"),
        line("b"),
        line("a", "instructions/avx2 forward 64 2 3 256", detector="instructions", instructions=5),
    ]
    paths = history.figure(entries, tmp_path)
    assert [path.suffix for path in paths] == [".png", ".svg"]
    assert all(path.stat().st_size > 1000 for path in paths)
    text = paths[1].read_text()
    assert "instructions per token" in text or "<svg" in text
