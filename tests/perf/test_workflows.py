"""What the workflows run, run here: the gate's script, the keeping of the history, the comment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_revisions import git, write_revision

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import gate_comment  # noqa: E402

needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="valgrind is not installed"
)


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A clone with a bare origin; the command counts instructions alone."""
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "origin.git")
    git(tmp_path, "clone", "-q", "origin.git", "repo")
    folder = tmp_path / "repo"
    for loops in (1000, 1000):
        write_revision(folder, seconds=0.001, loops=loops)
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", f"{loops}", "--allow-empty")
    git(folder, "push", "-q", "origin", "main")
    bench = tmp_path / "bin/bench"  # a file: `python -m` would import the small package from here
    bench.parent.mkdir()
    bench.write_text(
        f"#!{sys.executable}\nimport os, sys\nfrom moge_bench.cli import main\n"
        "sys.argv += ['--no-time'] * (sys.argv[2] == 'gate')\n"
        "if sys.argv[2] == 'series':  # minutes, of a package that this clone does not have\n"
        "    open('../series.log', 'a').write('x')\n"
        "    sys.exit(os.path.exists('../no-series'))\n"
        "main()\n"
    )
    bench.chmod(0o755)
    for name, value in (("MOGE_BENCH", bench), ("PYTHONPATH", ROOT), ("XDG_CACHE_HOME", tmp_path),
                        ("GITHUB_STEP_SUMMARY", tmp_path / "job.md")):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return folder


def script(repo, name, *arguments):
    command = [str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, cwd=repo, capture_output=True, text=True)


@needs_valgrind
@pytest.mark.slow
def test_a_planted_slowdown_ends_in_a_summary_of_ten_seconds(repo, tmp_path):
    write_revision(repo, seconds=0.001, loops=1050)
    git(repo, "commit", "-qam", "slower")
    done = script(repo, "gate_pull_request.sh", "origin/main", "gate")
    assert done.returncode == 1, done.stderr
    summary = (tmp_path / "job.md").read_text()
    assert summary == (repo / "gate/summary.md").read_text()
    # The verdict and the worst case stand in the first three lines.
    head = "\n".join(summary.splitlines()[:3])
    assert "Performance gate: regression" in head
    assert "1 of 1 kernel regions slower, worst 1.05x: avx2 forward N=64 k=2 h=3" in head
    git(repo, "commit", "-q", "--amend", "-m", "slower\n\nAccept-instructions: 1.06")
    done = script(repo, "gate_pull_request.sh", "origin/main", "gate")
    assert done.returncode == 0 and "slower, as accepted" in (repo / "gate/summary.md").read_text()
    done = script(repo, "gate_pull_request.sh", "nowhere", "gate")
    assert done.returncode == 2 and "no verdict" in (repo / "gate/summary.md").read_text()


ENTRY = "- {case: 'N=64', ratio: 1.08, reason: prefetch, until: 2099-01-01}\n"


@needs_valgrind
@pytest.mark.slow
def test_an_acceptance_serves_one_change(repo):
    """The entry lets its own change through; the next one is judged as if it were not there."""
    accepted = repo / "results/perf/accepted.yaml"
    accepted.parent.mkdir(parents=True)
    accepted.write_text(ENTRY)
    for loops, code in ((1070, 0), (1145, 1)):
        write_revision(repo, seconds=0.001, loops=loops)
        git(repo, "add", "-A")
        git(repo, "commit", "-qm", f"{loops}")
        done = script(repo, "gate_pull_request.sh", "HEAD^1", "gate")
        assert done.returncode == code, (loops, done.stdout, done.stderr)
        assert git(repo, "rev-parse", "--short=10", "HEAD") in done.stdout  # what was compared


@needs_valgrind
@pytest.mark.slow
def test_what_a_trailer_lets_through_passes_on_main_too(repo):
    write_revision(repo, seconds=0.001, loops=1050)
    git(repo, "commit", "-qam", "slower\n\nAccept-instructions: 1.06")
    (repo.parent / "no-series").touch()  # what the gate found is kept, whatever else fails
    assert script(repo, "keep_history.sh", "performance-data").returncode == 2
    git(repo, "fetch", "-q", "origin", "performance-data")
    (line,) = git(repo, "show", "FETCH_HEAD:history.jsonl").splitlines()
    assert json.loads(line)["verdict"] == "accepted"
    git(repo, "commit", "-q", "--amend", "-m", "slower\n\nAccept-instructions: much")
    done = script(repo, "gate_pull_request.sh", "HEAD^1", "gate")
    assert done.returncode == 2
    assert "must be a number such as 1.08, got much" in (repo / "gate/summary.md").read_text()


@needs_valgrind
@pytest.mark.slow
def test_the_history_keeps_itself_on_its_branch(repo, tmp_path):
    assert script(repo, "keep_history.sh", "performance-data").returncode == 0
    write_revision(repo, seconds=0.001, loops=1050)
    git(repo, "commit", "-qam", "slower")
    done = script(repo, "keep_history.sh", "performance-data")
    assert done.returncode == 1, done.stderr  # recorded all the same
    git(repo, "fetch", "-q", "origin", "performance-data")
    names = git(repo, "ls-tree", "--name-only", "FETCH_HEAD").split()
    assert names == ["history.html", "history.jsonl"]
    lines = git(repo, "show", "FETCH_HEAD:history.jsonl").splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["pass", "regression"]
    assert (tmp_path / "series.log").read_text() == "xx"
    assert git(repo, "rev-list", "--count", "FETCH_HEAD") == "2"  # no ancestor in main
    assert git(repo, "worktree", "list").count("\n") == 0  # nothing is left behind


HOSTILE = """## Performance gate: pass

@maintainer see [this](https://evil.example) ![x](//evil.example/x.png) <img src=x> www.evil.example
[a]: //evil.example
[b][a] fixes #1 \u202e &#64;you
| avx2 backward N=64 | pass | 1.00 | [0.99, 1.01] |
"""


def test_a_summary_from_a_stranger_names_and_links_nothing():
    text = gate_comment.harmless(HOSTILE)
    for risky in ("@m", "](", "][", "]:", "<img", "://", "www.", "#1", "\u202e", "&#64;"):
        assert risky in HOSTILE and risky not in text
    assert text.startswith("## Performance gate: pass\n")  # but it still reads
    assert "| avx2 backward N=64 | pass | 1.00 | [0.99, 1.01] |" in text
    for long in ("x" * 10**6, "@" * 10**6, "| a | b |\n" * 10**5):
        text = gate_comment.harmless(long)
        assert len(text) < 65_000 and text.endswith("The rest is in the report.")
        assert text.count("&") == text.count("&#8203;")  # none is cut in two


@pytest.mark.parametrize("risky", ["```mermaid\nx\n```", "$\\href{//evil}{x}$", "GH-12", "~~~x"])
def test_a_summary_from_a_stranger_draws_and_refers_to_nothing(risky):
    text = gate_comment.harmless(risky)
    for word in ("```", "~~~", "$\\", "GH-", "gh-"):
        assert word not in text


GH = """#!{python}
import json, sys
arguments = sys.argv[1:]
body = sys.stdin.read() if "--input" in arguments else None
with open({log!r}, "a") as log:
    log.write(json.dumps([arguments, body]) + "\\n")
if "GET" in arguments:
    print(json.dumps({{"number": 7, "head": {{"sha": "c0ffee"}}}}))
elif "--paginate" in arguments:
    print(json.dumps({{"id": 1, "body": {mark!r} + "mine?", "type": "User"}}))
    print({comment!r})
else:
    print("{{}}")
"""


@pytest.mark.parametrize(
    ("commit", "comment", "asked"),
    [("c0ffee", "", ["GET", "--paginate", "POST"]),
     ("c0ffee", json.dumps({"id": 2, "body": gate_comment.MARK, "type": "Bot"}),
      ["GET", "--paginate", "PATCH"]),
     ("older", "", ["GET"])],
)  # fmt: skip
def test_one_comment_is_kept_up_to_date(tmp_path, commit, comment, asked):
    """Another person's comment that bears the mark is left alone; a commit passed by gets none."""
    log, gh = tmp_path / "log", tmp_path / "gh"
    gh.write_text(GH.format(python=sys.executable, log=str(log), mark=gate_comment.MARK,
                            comment=comment))  # fmt: skip
    gh.chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "REPOSITORY": "o/r", "HEAD_OWNER": "fork",
        "HEAD_BRANCH": "$(touch x)", "HEAD_COMMIT": commit, "RUN_URL": "https://run.example",
    }  # fmt: skip
    (tmp_path / "summary.md").write_text("## Performance gate: pass\n")
    subprocess.run(
        [sys.executable, ROOT / "scripts/gate_comment.py", tmp_path / "summary.md"],
        env=env, cwd=tmp_path, check=True,
    )  # fmt: skip
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert [next(word for word in asked if word in call) for call, _ in calls] == asked
    assert "head=fork:$(touch x)" in calls[0][0] and not (tmp_path / "x").exists()
    if commit == "c0ffee":
        text = json.loads(calls[-1][1])["body"]
        assert text.startswith(gate_comment.MARK) and "Performance gate: pass" in text
        target = "issues/7/comments" if "POST" in asked else "issues/comments/2"
        assert any(word.endswith(target) for word in calls[-1][0])


def workflow(name):
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def test_the_drift_is_looked_for_whatever_the_last_commit_did():
    steps = workflow("history")["jobs"]["history"]["steps"]
    (drift,) = (step for step in steps if "--anchor" in step.get("run", ""))
    assert drift["if"] == "${{ !cancelled() && github.event_name == 'schedule' }}"


def test_base_is_what_the_merge_commit_was_made_of():
    """The branch itself may have moved on when a run is started again."""
    steps = workflow("gate")["jobs"]["gate"]["steps"]
    (run,) = (step["run"] for step in steps if "gate_pull_request" in step.get("run", ""))
    assert run == "scripts/gate_pull_request.sh HEAD^1 gate"


def test_the_comment_workflow_runs_nothing_of_the_pull_request():
    """It checks out the main branch, and no expression stands in what a shell runs."""
    steps = workflow("gate-comment")["jobs"]["comment"]["steps"]
    checkout = next(step for step in steps if "checkout" in step.get("uses", ""))
    assert "ref" not in checkout["with"] and checkout["with"]["persist-credentials"] is False
    assert all("${{" not in step.get("run", "") for step in steps)
