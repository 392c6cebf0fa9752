"""Since when, and by which commit: searches over histories of a small repository."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from fake_revisions import git, write_revision
from typer.testing import CliRunner

from moge_bench.cli import gate as cli
from moge_bench.perf import bisect, gate, history, registry, revisions
from moge_bench.perf.registry import Case
from moge_bench.perf.statistics import INCONCLUSIVE, PASS, REGRESSION

PACKAGE = "moge_bench/__init__.py"

needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="valgrind is not installed"
)


def commit(repo, message, *, loops=None, date=None):
    if loops is not None:
        write_revision(repo, seconds=0.001, loops=loops)
    (repo / "note.txt").write_text(message)
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", message, *([f"--date={date}"] if date else []))
    return git(repo, "rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path, monkeypatch):
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    monkeypatch.chdir(folder)
    return folder


def invoke(tmp_path, *arguments):
    cache = ["--cache", str(tmp_path / "cache")]
    return CliRunner().invoke(cli.app, [*arguments, *cache])


@pytest.mark.parametrize("first", range(1, 9))
def test_first_bad_asks_about_the_logarithm(first):
    asked = []

    def is_bad(name):
        asked.append(name)
        return int(name) >= first

    names = [str(n) for n in range(1, 9)]
    assert names[bisect.first_bad(names, is_bad)] == str(first)
    assert len(asked) == 3  # log2 of 8


@needs_valgrind
def test_the_commit_is_found_among_eight_and_notes_are_never_built(repo, tmp_path):
    """A planted 5 %: three of the eight commits change nothing that is compiled."""
    loops = {1: 1000, 3: 1001, 5: 1052, 7: 1053}
    made = {n: commit(repo, f"commit {n}", loops=loops.get(n)) for n in range(1, 9)}
    result = invoke(tmp_path, "bisect", "--good", made[1], "--bad", made[8], "--case", "N=64")
    assert result.exit_code == 0, result.output
    # 1052 / 1001 = 1.051 of the commit before, of 1053 / 1000 = 1.053 in all.
    assert result.output.splitlines()[-2].startswith(f"{made[5][:12]} commit 5")
    assert "avx2 forward N=64 k=2 h=3: 1.05" in result.output
    assert result.output.count("counting") <= 4  # of 8 commits, 4 different kernels


@needs_valgrind
def test_a_drift_of_small_steps_is_seen_and_said(repo, tmp_path):
    """Five steps of 1.5 %, each within the gate's 2 %: 1.015^5 = 1.077."""
    loops = [round(1000 * 1.015**n) for n in range(6)]
    made = [commit(repo, f"step {n}", loops=count) for n, count in enumerate(loops)]
    arguments = ("--no-time", "--no-record", "--output", str(tmp_path / "out"))
    result = invoke(tmp_path, "gate", "--base", "HEAD~1", "--head", "HEAD", *arguments)
    assert result.exit_code == 0, result.output  # one step alone passes
    git(repo, "tag", "v1.0", made[0])
    result = invoke(tmp_path, "gate", "--anchor", "--head", "HEAD", *arguments)
    assert result.exit_code == 1 and "worst 1.08x" in result.output
    facts = json.loads((tmp_path / "out/gate.json").read_text())["facts"]
    assert facts["base"] == made[0]
    result = invoke(tmp_path, "bisect", "--good", "v1.0")
    assert result.exit_code == 0 and "a drift in several steps" in result.output


@needs_valgrind
def test_what_is_not_slower_has_no_commit_to_find(repo, tmp_path):
    commit(repo, "one", loops=1000)
    commit(repo, "two", loops=1010)
    result = invoke(tmp_path, "bisect", "--good", "HEAD~1")
    assert result.exit_code == 2 and "not slower than HEAD~1" in result.output
    assert "--by time" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--good", "HEAD"), "is not before"), (("--good", "nowhere"), "rev-parse"),
     (("--good", "HEAD~1", "--by", "weight"), "'instructions' or 'time', got 'weight'"),
     (("--good", "HEAD~1", "--by", "time"), "fits 5 cases of the gate")],
)  # fmt: skip
def test_bad_requests_end_in_one_sentence(repo, tmp_path, arguments, message):
    commit(repo, "one")
    commit(repo, "two")
    result = invoke(tmp_path, "bisect", *arguments)
    assert result.exit_code == 2 and message in result.output.replace("\n", " ")


@pytest.fixture
def judged(repo, tmp_path, monkeypatch):
    """by_time where the gate, tested elsewhere, reads how long the route of a revision burns."""
    monkeypatch.setitem(registry.SETS, "gate", [Case("router", 16, 8, 2, 2, threads=1)])
    asked = []

    def run(base, head, cases, policy, *, instructions, backend, progress):
        assert not instructions and backend == "extension"
        burned = [
            float(re.search(r"process_time\(\) \+ (\S+)", (r.tree / PACKAGE).read_text())[1])
            for r in (base, head)
        ]
        asked.append(head.commit)
        ratio = burned[1] / burned[0]
        verdict = INCONCLUSIVE if ratio < 1 else REGRESSION if ratio > 1.1 else PASS
        decision = SimpleNamespace(verdict=verdict, ratio=ratio, reason="noise")
        return SimpleNamespace(decisions=[decision])

    monkeypatch.setattr(gate, "run", run)

    def search(*seconds):
        made = []
        for n, each in enumerate(seconds):
            write_revision(repo, seconds=each, loops=1000)
            made.append(commit(repo, f"commit {n}"))
        arguments = (repo, made[0], "HEAD", None, tmp_path / "cache", bisect.Policy(), print)
        return made, asked, bisect.by_time(*arguments)

    return search


def test_by_time_the_gate_judges(judged):
    made, asked, found = judged(0.001, 0.001, 0.006, 0.006)
    assert found.commit == made[2] and "slower by time" in str(found)
    assert asked == [made[3], made[2], made[1]]  # the bad end first, then halves


@pytest.mark.parametrize(
    ("last", "kind", "message"),
    [(0.001, ValueError, "HEAD is not slower"), (0.0005, RuntimeError, "cannot be told from")],
)
def test_by_time_says_why_it_stops(judged, last, kind, message):
    with pytest.raises(kind, match=message):
        judged(0.001, last)


def test_the_anchor_is_a_release_or_thirty_days_old(repo, monkeypatch):
    made = []
    for day in ("2026-01-01", "2026-02-01", "2026-03-20", "2026-03-25"):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{day}T12:00:00Z")
        made.append(commit(repo, day))
    # 30 days before 25 March is 23 February: the newest commit before that is of 1 February.
    assert revisions.anchor(repo, "HEAD") == made[1]
    assert revisions.anchor(repo, "HEAD", days=1000) == made[0]  # none so old: the first
    git(repo, "tag", "v0.1", made[2])
    git(repo, "tag", "v0.2", made[3])
    assert revisions.anchor(repo, "HEAD") == "v0.1"  # not HEAD's own
    with pytest.raises(ValueError, match="has no parent"):
        revisions.anchor(repo, made[0])


@needs_valgrind
def test_history_counts_older_commits_and_draws_them(repo, tmp_path):
    first = commit(repo, "first", loops=1000)
    commit(repo, "a note")
    (repo / "csrc/cuda").mkdir()
    (repo / "csrc/cuda/kernel.cu").write_text("// of the GPU alone\n")
    commit(repo, "a CUDA kernel")
    last = commit(repo, "slower", loops=1100)
    output = ("--output", str(tmp_path / "out"))
    assert invoke(tmp_path, "history", *output).exit_code == 2  # nothing to draw
    result = invoke(tmp_path, "history", "--count", "9", *output)
    assert result.exit_code == 0, result.output
    entries = history.read(tmp_path / "out/history.jsonl")
    assert {e["commit"] for e in entries} == {first, last}  # the others have the same kernels
    text = (tmp_path / "out/history.html").read_text()
    assert "+10.0 %" in text and f"{last[:10]} slower" in text
    assert "counting" not in invoke(tmp_path, "history", "--count", "9", *output).output
