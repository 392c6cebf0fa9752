"""scripts/gpu_run.sh, which no machine without a GPU runs whole: what it names exists."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.gpu_run import first_kernel
from tools.gpu_run.libraries import runs_on

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/gpu_run.sh"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_it_is_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_every_program_and_study_that_it_names_exists():
    text = SCRIPT.read_text()
    programs = set(re.findall(r"\b(tools\.gpu_run\.\w+|moge_bench\.cli)\b", text))
    loops = re.findall(r"for name in ([\w ]+); do", text)
    programs |= {f"tools.gpu_run.{name}" for names in loops for name in names.split()}
    assert len(programs) >= 8, programs
    for program in sorted(programs):
        assert importlib.util.find_spec(program) is not None, program
    studies = set(re.findall(r"tools/gpu_run/(first_[$\w]+)\.yaml", text))
    for study in studies:
        for grid in ("vit", "lm") if "$grid" in study else ("",):
            assert (ROOT / "tools/gpu_run" / f"{study.replace('$grid', grid)}.yaml").is_file()


def test_every_function_run_by_another_bash_is_exported():
    text = SCRIPT.read_text()
    called = set(re.findall(r'bash -c "?(\w+)', text))
    exported = {name for names in re.findall(r"export -f ([\w ]+)", text) for name in names.split()}
    defined = set(re.findall(r"^(\w+)\(\) \{", text, re.MULTILINE))
    assert called and called <= exported <= defined, (called, exported, defined)


@pytest.mark.parametrize(
    ("entry", "card", "runs"),
    [
        ("9.0", (9, 0), True),
        ("9.0", (8, 9), False),  # never on an older one
        ("8.0", (8, 9), True),  # the same major, a later minor
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),  # compiled by the driver
        ("9.0+PTX", (8, 0), False),
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),  # one card's own features
        ("10.0a+PTX", (12, 0), False),
        ("10.0f", (10, 3), True),  # a family is a major
        ("10.0f+PTX", (12, 0), False),
    ],
)
def test_code_for_one_architecture_runs_on_which_cards(entry, card, runs):
    assert runs_on(entry, card) is runs


def test_the_first_kernels_run_on_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["first_kernel", "cpu"])
    first_kernel.main()
    assert capsys.readouterr().out.endswith("the first kernels run on cpu\n")
