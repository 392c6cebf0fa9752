"""Narrow encodings, closed pipes, no stdout, no home: none of them fails a command."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner

from moge_bench import cli
from moge_bench.cli import commands, common, terminal
from moge_bench.cli.common import user_errors

ROOT = Path(__file__).resolve().parents[2]


def narrow(monkeypatch):
    """Make stdout and stderr as PYTHONIOENCODING=ascii does; return what comes out of both.

    No fixture: pytest puts its own streams back between a fixture and its test.
    """
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, "ascii", write_through=True))
    return raw


def run_main(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["moge-bench", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return end.value.code


def test_what_ascii_lacks_is_written_in_plain_letters(monkeypatch):
    raw = narrow(monkeypatch)
    with terminal.forgiving():
        print("55.0 ± 0.3 × café λ = σ … 東京")
    assert raw.getvalue() == b"55.0 +- 0.3 x cafe lambda = sigma ... ??\n"


def test_help_and_mistakes_are_shown_in_ascii(monkeypatch):
    raw = narrow(monkeypatch)
    assert run_main("--help") == 0
    assert run_main("ablate", "größe_±.yaml") == 2
    text = raw.getvalue().decode("ascii")
    assert "Benchmarks of router" in text and "grid file gro?e_+-.yaml cannot" in text


def test_a_reader_that_goes_ends_the_command_quietly(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert run_main("ablate", "--dry-run", "--results", "none") == 1
    assert capfd.readouterr().err == ""


def test_a_broken_pipe_to_a_child_is_not_the_readers(capsys):
    with pytest.raises(typer.Exit), user_errors():
        raise BrokenPipeError(32, "Broken pipe")
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| head -c 20", ">&-"])
def test_a_closed_stdout_is_not_complained_of(redirection):
    script = f"'{sys.executable}' -m moge_bench.cli ablate --dry-run --results none {redirection}"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_process_without_a_home_gets_one(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", "before")
    monkeypatch.setattr(Path, "home", home)
    with terminal.forgiving():
        assert Path(os.environ["HOME"]).is_dir()


def in_a_terminal(columns, *arguments, **variables):
    """Run the command in a pseudo-terminal so wide; return what it wrote there."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen(
        [sys.executable, "-m", "moge_bench.cli", *arguments], stdout=follower, stderr=follower,
        stdin=follower, env={**environment, "TERM": "xterm-256color", **variables},
    ):  # fmt: skip
        os.close(follower)
        written = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while piece := os.read(leader, 4096):
                written += piece
    os.close(leader)
    return written.decode()


ESCAPES = re.compile(r"\x1b\[([\d;]*)m")


def test_eighty_columns_hold_the_help_and_no_color_means_none():
    plain = in_a_terminal(80, "ablate", "--help", NO_COLOR="1")
    lines = ESCAPES.sub("", plain).splitlines()
    assert len(lines) > 20 and max(map(len, lines)) <= 80
    codes = {code for found in ESCAPES.findall(plain) for code in found.split(";")}
    assert not codes & {str(color) for color in (*range(30, 39), *range(90, 98))}
    assert re.search(r"\x1b\[[\d;]*3\d", in_a_terminal(80, "ablate", "--help"))


def test_a_terminal_gets_tables_in_its_width_and_a_pipe_gets_the_file(monkeypatch, capsys):
    """Six columns of Markdown with their captions are wider than most terminals."""
    cell = "77.30 [76.10; 78.50]"
    head = "| arm | " + " | ".join(f"moge, {n} experts" for n in (16, 32, 64, 144, 256)) + " |"
    text = "\n".join(
        [
            "### Test top-1",
            "",
            head,
            "|:--" + "|--:" * 5 + "|",
            f"| a\\|b | {' | '.join([cell] * 5)} |",
            "",
            "Mean of 3 seeds, p < 0.05. " * 9,
        ]
    )
    common.print_markdown(text)
    assert capsys.readouterr().out == text + "\n"
    file = io.StringIO()
    terminal_of_80 = Console(file=file, width=80, force_terminal=True, no_color=True)
    monkeypatch.setattr(common, "out", terminal_of_80)
    common.print_markdown(text)
    lines = ESCAPES.sub("", file.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "a|b" in file.getvalue() and "p < 0.05" in file.getvalue()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("moge-bench tab", ["tables"]),
        ("moge-bench train tiny-s", ["tiny-swin", "tiny-swinv2"]),
        ("moge-bench train tiny-vit --method moge-u", ["moge-unit", "moge-unit-shuffled"]),
        ("moge-bench perf his", ["history"]),
        ("moge-bench show --results r ab", ["ab12", "ab34"]),
    ],
)
def test_completion_of_the_shell(monkeypatch, tmp_path, words, offered):
    for name in ("ab/ab12", "ab/ab34", "cd/cd56"):
        path = tmp_path / f"r/runs/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    asked = {"_MOGE_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
    result = CliRunner().invoke(commands.app, [], prog_name="moge-bench", env=asked)
    assert (result.exit_code, result.output.split()) == (0, offered)


ELSEWHERE = """
import os, sys
from moge_bench.cli import main
folder = "Ergebnisse à moi/ö"
for arguments in (["ablate", "größe.yaml", "--results", folder], ["tables", "--results", folder],
                  ["figures", "--results", folder], ["report", "--results", folder]):
    sys.argv = ["moge-bench", *arguments]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
"""


@pytest.mark.slow
def test_any_folder_any_locale_and_no_home(tmp_path):
    """From another directory, into names with spaces and letters, under LANG=C, without HOME."""
    folder = tmp_path / "Räume und Pläne"
    folder.mkdir()
    grid = {"name": "small", "question": "Wächst es?", "base": {"preset": "tiny-vit", "seeds": [0],
            "set": {"training.steps": 2, "training.batch_size": 8}}, "axes": {"method": ["dense"]},
            "table": {"rows": "method", "metrics": "top1_accuracy"}}  # fmt: skip
    (folder / "größe.yaml").write_text(yaml.safe_dump(grid, allow_unicode=True), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=folder, capture_output=True, check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "LANG": "C", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert b"Traceback" not in done.stderr
    results = folder / "Ergebnisse à moi/ö"
    assert {path.name for path in folder.iterdir()} == {"größe.yaml", "Ergebnisse à moi"}
    tables = (results / "studies/small/tables.md").read_text(encoding="utf-8")
    assert "Wächst es?" in tables and "--results 'Ergebnisse à moi/ö'" in tables
    assert (results / "report.html").exists()
