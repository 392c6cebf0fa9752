"""`perf gate` as a command: two revisions of a small repository, built and raced."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_revisions import git, write_revision
from typer.testing import CliRunner

from moge_bench.cli import gate as cli
from moge_bench.perf import callgrind, gate, measure, registry, revisions
from moge_bench.perf.registry import Case
from moge_bench.perf.statistics import ACCEPTED, INCONCLUSIVE, PASS, REGRESSION


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository whose first commit is the base, as the current directory."""
    folder = tmp_path / "repo"
    write_revision(folder, seconds=0.001, loops=1000)
    git(tmp_path, "init", "-q", "-b", "main", "repo")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "base")
    monkeypatch.chdir(folder)
    monkeypatch.setitem(registry.SETS, "gate", [Case("router", 16, 8, 2, 2, threads=1)])
    return folder


def run_gate(repo: Path, tmp_path: Path, *arguments: str):
    command = ["gate", "--base", "main", "--cache", str(tmp_path / "cache")]
    return CliRunner().invoke(cli.app, [*command, "--output", str(tmp_path / "out"), *arguments])


@pytest.mark.slow
def test_a_slower_revision_fails_end_to_end(repo, tmp_path):
    write_revision(repo, seconds=0.004, loops=1000)
    git(repo, "commit", "-qam", "slower")
    few = ("--blocks", "6", "--generations", "2", "--max-generations", "2", "--no-instructions")
    result = run_gate(repo, tmp_path, "--base", "HEAD~1", "--head", "HEAD", *few)
    assert result.exit_code == 1, result.output
    name = "router/N8-k2-h2-T16-uniform-fp32-valid-t1"
    data = json.loads((tmp_path / "out/gate.json").read_text())
    (decision,) = data["decisions"]
    assert (decision["case"], decision["verdict"]) == (name, REGRESSION)
    assert decision["low"] > 2  # 1 ms against 4 ms, and what both have in common
    title = "router N=8 k=2 h=2, 16 tokens, 1 thread"
    words = f"| {title} | regression | {decision['ratio']:.4f} | [{decision['low']:.3f}"
    assert words in (tmp_path / "out/gate.md").read_text()
    assert f"1 of 1 timed cases slower, worst {decision['ratio']:.2f}x: {title}" in result.output
    (line,) = (tmp_path / "out/history.jsonl").read_text().splitlines()
    assert json.loads(line)["commit"] == git(repo, "rev-parse", "HEAD")


needs_valgrind = pytest.mark.skipif(
    subprocess.run(["which", "valgrind"], capture_output=True).returncode != 0,
    reason="valgrind is not installed",
)


@needs_valgrind
@pytest.mark.parametrize(("loops", "code", "verdict"), [(1000, 0, PASS), (1050, 1, REGRESSION)])
def test_five_percent_more_instructions_fail_end_to_end(repo, tmp_path, loops, code, verdict):
    write_revision(repo, seconds=0.001, loops=loops)
    (repo / "note.txt").write_text("an uncommitted file")
    result = run_gate(repo, tmp_path, "--no-time")
    assert result.exit_code == code, result.output
    data = json.loads((tmp_path / "out/gate.json").read_text())
    (decision,) = data["decisions"]
    assert decision["verdict"] == data["verdict"] == verdict
    # 5 instructions a loop or so, and a handful around: the ratio is that of the loops.
    assert decision["ratio"] == pytest.approx(loops / 1000, abs=0.002)
    said = {0: "none of 1 kernel regions slower",
            1: "1 of 1 kernel regions slower, worst 1.05x: avx2 forward N=64 k=2 h=3"}  # fmt: skip
    assert said[code] in result.output
    assert result.output.count("1.05x") == code  # each regression once
    assert not (tmp_path / "out/history.jsonl").exists()  # a dirty tree has no commit to record


@needs_valgrind
def test_more_instructions_pass_where_they_are_accepted(repo, tmp_path):
    write_revision(repo, seconds=0.001, loops=1050)
    result = run_gate(repo, tmp_path, "--no-time", "--accept-instructions", "1.06")
    assert result.exit_code == 0, result.output
    (decision,) = json.loads((tmp_path / "out/gate.json").read_text())["decisions"]
    assert decision["verdict"] == ACCEPTED and "accepted up to 1.06" in decision["reason"]
    write_revision(repo, seconds=0.001, loops=1080)
    assert run_gate(repo, tmp_path, "--no-time", "--accept-instructions", "1.06").exit_code == 1
    accepted = repo / "results/perf/accepted.yaml"
    accepted.parent.mkdir(parents=True)
    entry = "- {case: N=64, ratio: 1.09, reason: it buys time, until: %s}\n"
    accepted.write_text(entry % "2999-12-31")
    result = run_gate(repo, tmp_path, "--no-time")
    assert result.exit_code == 0 and "until 2999-12-31: it buys time" in result.output
    accepted.write_text(entry % "2020-01-31")
    result = run_gate(repo, tmp_path, "--no-time")
    assert result.exit_code == 1 and "(it buys time) expired on 2020-01-31" in result.output


@pytest.mark.slow
def test_a_fallback_is_an_error_not_a_measurement(repo, tmp_path):
    write_revision(repo, seconds=0.001, loops=1000, backend="reference")
    result = run_gate(repo, tmp_path, "--no-instructions", "--generations", "2")
    assert result.exit_code == 2
    assert "ran backend 'reference'" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--base", "nowhere"), "rev-parse"),
     (("--case", "x", "--no-instructions"), "case='x' matches nothing"),
     (("--anchor",), "one of them"),
     (("--no-time", "--no-instructions"), "nothing to compare"), (("--blocks", "1"), "blocks"),
     (("--accept-instructions", "0.5"), "at least 1")],
)  # fmt: skip
def test_bad_requests_end_in_one_sentence(repo, tmp_path, arguments, message):
    result = run_gate(repo, tmp_path, *arguments)
    assert result.exit_code == 2 and message in result.output
    assert "Traceback" not in result.output


def test_a_failed_build_shows_the_compiler(repo, tmp_path):
    (repo / "setup.py").write_text("raise SystemExit('error: no such header')")
    with pytest.raises(RuntimeError, match="no such header"):
        revisions.build(repo, None, tmp_path / "cache", "head")
    assert not list((tmp_path / "cache").iterdir())  # nothing half-built is left


def test_a_region_that_head_does_not_count_any_more_cannot_be_told(repo, tmp_path):
    driver = repo / "csrc/bench/kernel_driver.cpp"
    text = driver.read_text()
    more = text.replace("moge_measured(&x); std", 'moge_measured(&x); std::puts("x"); std')
    driver.write_text(more)
    git(repo, "commit", "-qam", "two regions")
    base = revisions.build(repo, "HEAD", tmp_path / "cache", "base")
    driver.write_text(text)
    head = revisions.build(repo, None, tmp_path / "cache", "head")
    assert callgrind.regions(base) == ["x", "avx2 forward 64 2 3 256"]
    counted = {"avx2 forward 64 2 3 256": 1000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callgrind, "count", lambda revision, driver_of=None: counted)
        decisions, _, _ = gate.compare_instructions(base, head, 1.02)
    assert [(d.case, d.verdict) for d in decisions] == [
        ("instructions/avx2 forward N=64 k=2 h=3", PASS), ("instructions/x", INCONCLUSIVE)
    ]  # fmt: skip


def test_of_the_scripts_those_that_setup_imports_make_another_build(repo):
    (repo / "scripts").mkdir()
    setup = repo / "setup.py"
    setup.write_text(f"import helper  # noqa\n{setup.read_text()}")
    keys = []
    for name in ("helper.py", "other.py"):
        keys.append(revisions.build_key(repo))
        (repo / "scripts" / name).write_text("x = 1\n")
    assert keys[0] != keys[1] == revisions.build_key(repo)


def test_what_the_compiler_is_told_from_outside_makes_another_build(repo, tmp_path, monkeypatch):
    first = revisions.build(repo, "main", tmp_path / "cache", "base")
    monkeypatch.setenv("MOGE_CXXFLAGS", "-O0")
    assert revisions.build(repo, "main", tmp_path / "cache", "base").tree != first.tree


def test_builds_are_cached_by_source(repo, tmp_path):
    first = revisions.build(repo, "main", tmp_path / "cache", "base")
    again = revisions.build(repo, None, tmp_path / "cache", "head")
    assert first.tree == again.tree and first.commit == again.commit
    write_revision(repo, seconds=0.002, loops=1000)
    changed = revisions.build(repo, None, tmp_path / "cache", "head")
    assert changed.tree != first.tree and changed.commit.endswith("+dirty")


def test_worker_reports_its_own_errors(repo, tmp_path):
    broken = tmp_path / "broken"
    (broken / "moge_bench").mkdir(parents=True)
    (broken / "moge_bench/__init__.py").write_text("raise ImportError('half a package')")
    worker = measure.Worker(revisions.Revision("head", "c", broken, "k"))
    try:
        with pytest.raises(RuntimeError, match="half a package"):
            worker.receive()
    finally:
        worker.close()


@pytest.mark.slow
def test_the_proof_knows_the_kernels(tmp_path):
    """The slowdown that scripts/prove_gate.py injects still fits the kernel sources."""
    root = Path(__file__).resolve().parents[2]
    script = (
        "import sys; sys.path.insert(0, 'scripts'); import prove_gate, pathlib\n"
        "for code in (prove_gate.repeat(5), prove_gate.DELAY):\n"
        f"    import shutil; tree = pathlib.Path({str(tmp_path)!r}) / 'tree'\n"
        "    shutil.rmtree(tree, ignore_errors=True); shutil.copytree('csrc', tree / 'csrc')\n"
        "    prove_gate.slow_down(tree, code)\n"
        "    for source in (tree / 'csrc/cpu').glob('kernels_*.cpp'):\n"
        "        assert source.read_text().count('Slowed::') == 2\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)
    assert "Slowed" not in "".join(p.read_text() for p in (root / "csrc").rglob("*.cpp"))
