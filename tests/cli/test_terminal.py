"""Narrow encodings, closed pipes, no stdout, no home: none of them fails a command."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from moge_bench import cli
from moge_bench.cli import terminal
from moge_bench.cli.common import user_errors


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
