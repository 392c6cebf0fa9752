"""Ctrl-C at any moment: exit code 130 and one sentence that says how to go on."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from moge_bench import cli
from moge_bench.cli import commands, interrupted

GRID = {
    "name": "small", "question": "Is it interrupted?",
    "base": {"preset": "tiny-vit", "seeds": [0],
             "set": {"training.steps": 200_000, "training.batch_size": 8}},
    "axes": {"method": ["dense", "moe"]}, "table": {"rows": "method", "metrics": "top1_accuracy"},
}  # fmt: skip


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def grid_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return path


@pytest.mark.parametrize(
    ("arguments", "function", "sentence"),
    [
        (["ablate"], "moge_bench.study.grid.load_grid", "finished runs are kept; the same command"),
        (["train", "tiny-vit"], "moge_bench.presets.resolve", "the same command goes on from the"),
        (["tables"], "moge_bench.runs.store.check_layout", "what is written is whole; the same"),
        (["analyze"], "moge_bench.runs.store.check_layout", "finished analyses are kept; the same"),
        (["doctor"], "moge_bench.doctor.run_checks", "nothing was changed"),
        (["perf", "run"], "moge_bench.perf.registry.select", "what is measured is in the report"),
        (
            ["perf", "gate", "--anchor"],
            "moge_bench.perf.registry.select",
            "nothing was recorded",
        ),
    ],
)
def test_each_command_says_how_to_go_on(monkeypatch, arguments, function, sentence):
    monkeypatch.setattr(function, interrupt)
    result = CliRunner().invoke(commands.app, arguments, prog_name="python -m moge_bench.cli")
    assert result.exit_code == interrupted.EXIT_CODE == 130
    (line,) = result.output.splitlines()
    assert line.startswith(f"moge-bench: interrupted; {sentence}")


def test_every_command_that_leaves_something_has_a_sentence():
    commands_of = {name for name in interrupted._GO_ON if not name.startswith("perf ")}
    changing = {c.callback.__name__ for c in commands.app.registered_commands}
    assert changing - commands_of == {"doctor", "presets", "show", "diff"}  # these change nothing
    (group,) = commands.app.registered_groups
    named = {f"perf {c.name or c.callback.__name__}"
             for c in group.typer_instance.registered_commands}  # fmt: skip
    assert named == {name for name in interrupted._GO_ON if name.startswith("perf ")}


def test_before_the_command_line_is_read(monkeypatch, capsys):
    monkeypatch.setattr(commands, "app", interrupt)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "moge-bench: interrupted; nothing was changed\n"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["while it imports", "while its runs train"])
def test_a_real_one(tmp_path, grid_file, moment):
    """To the whole group, as a terminal sends it; no process of the command says more."""
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moge_bench.cli", "ablate", str(grid_file), "--jobs", "2",
             "--results", str(tmp_path / "results")],
            stdout=out, stderr=out, start_new_session=True,
            # A shell's background job ignores Ctrl-C, and so would what this test starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    watched, deadline = psutil.Process(process.pid), time.monotonic() + 600

    def has_come():
        if moment == "while its runs train":
            return len(watched.children(recursive=True)) >= 4  # tracker, fork server, two runs
        return any("torch" in mapped.path for mapped in watched.memory_maps())

    while not has_come() and time.monotonic() < deadline:
        time.sleep(0.1)
    family = [watched, *watched.children(recursive=True)]
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive
    (line,) = [each for each in (tmp_path / "out").read_text().splitlines()
               if not each.startswith("small: ")]  # fmt: skip
    assert line.startswith("moge-bench: interrupted; finished runs are kept; the same command does")
