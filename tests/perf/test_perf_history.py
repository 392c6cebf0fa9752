"""The history file: append-only, whole lines or nothing, one entry per commit and case."""

import json
import os
from multiprocessing import get_context

import pytest

from moge_bench.perf import history, machines
from moge_bench.perf.gate import Outcome
from moge_bench.perf.revisions import Revision
from moge_bench.perf.statistics import Decision, decide_instructions, not_counted
from moge_bench.perf.timing import summarize


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


def alert(commit, ratio=1.2, verdict="regression", **extra):
    return line(commit, verdict=verdict, ratio_to_base=ratio, base="p", **extra)


def test_an_alert_that_a_later_run_takes_back_stays_known(tmp_path):
    path = tmp_path / "history.jsonl"
    history.append(path, [alert("a", 1.2), alert("b", 1.3), alert("c", 1.4)])
    history.append(path, [alert("a", 1.0, "pass"), alert("b", 1.25), line("c", median_ms=3.0)])
    history.append(path, [alert("a", 1.0, "pass")])
    a, b, c = (next(e for e in history.read(path) if e["commit"] == name) for name in "abc")
    assert (a["verdict"], a["cleared"]) == ("pass", 1.2)
    assert (b["verdict"], b["ratio_to_base"]) == ("regression", 1.25) and "cleared" not in b
    assert c["verdict"] == "regression"  # a figure without a verdict takes none back


def test_an_exact_count_is_never_an_alert_that_clears(tmp_path):
    path = tmp_path / "history.jsonl"
    history.append(path, [alert("a", detector="instructions")])
    history.append(path, [alert("a", 1.05, "accepted", detector="instructions")])
    (entry,) = history.read(path)
    assert entry["verdict"] == "accepted" and "cleared" not in entry


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


def test_machines_are_not_mixed(tmp_path):
    path = tmp_path / "history.jsonl"
    history.append(path, [line("a", machine="m1"), line("a", machine="m2"), line("a")])
    assert [e["machine"] for e in history.read(path)] == ["m1", "m2", "unknown machine"]
    path.write_text('{"commit": "a"}\n')
    with pytest.raises(ValueError, match="line 1 has no commit or no case"):
        history.read(path)


def test_an_entry_says_where_it_was_measured_and_what_cleared(monkeypatch):
    monkeypatch.setattr(machines, "compiler_version", lambda: "g++ 12.2.0")
    revision = Revision("head", "c1", None, "key")
    decisions = [
        decide_instructions("instructions/avx2 forward N=64 k=2 h=3", 1000, 1050),
        Decision("t", "cpu time", "pass", 1.0, 0.9, 1.1, 1.05, 1.08, "", 80),
    ]
    outcome = Outcome(
        decisions, {"t": summarize([1.0, 2.0, 3.0])}, {"avx2 forward 64 2 3 320": 1050}, [],
        {"t": 1.2},
    )  # fmt: skip
    facts = {"device": "EPYC", "capability": "AVX2", "cpus": 2, "torch": "2.13"}
    exact, timed = history.entries(outcome, revision, revision, facts)
    assert exact["machine"] == "instruction counts, g++ 12.2.0"  # the same on every processor
    assert (exact["instructions"], exact["num_tokens"]) == (1050, 320)
    assert exact["detectable"] == 1.02 and "cleared" not in exact
    assert timed["machine"] == "EPYC, avx2, 2 cores, g++ 12.2.0, torch 2.13"
    # Quartiles of 1, 2, 3 inclusive: 1.5 and 2.5.
    assert (timed["lower_quartile_ms"], timed["median_ms"], timed["upper_quartile_ms"]) == (
        1.5, 2.0, 2.5)  # fmt: skip
    assert timed["cleared"] == 1.2 and timed["base"] == "c1"
    # Against another base than its parent, the figures alone.
    exact, timed = history.entries(outcome, revision, revision, facts, judged=False)
    assert exact["instructions"] == 1050 and timed["median_ms"] == 2.0
    assert not {"verdict", "base", "ratio_to_base", "cleared"} & (exact.keys() | timed.keys())


def test_a_region_that_head_has_no_more_has_no_entry():
    outcome = Outcome([not_counted("instructions/avx2 forward N=8 k=2 h=2")], {}, {}, [])
    revision = Revision("head", "c1", None, "key")
    assert history.entries(outcome, revision, revision, {}) == []


def test_a_gpu_is_known_by_its_driver():
    facts = {"device": "H100", "driver": "580.1", "torch": "2.13", "cpus": 8, "capability": "x"}
    assert machines.machine(facts, "g++ 12") == "H100, driver 580.1, torch 2.13"
