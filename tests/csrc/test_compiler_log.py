"""Of a build that fails the errors are shown first, whatever the warnings around them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moge_bench.system import cxx_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compiler_log():
    path = ROOT / "scripts/compiler_log.py"
    spec = importlib.util.spec_from_file_location("compiler_log", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(tmp_path, text):
    source = tmp_path / "kernel.cpp"
    source.write_text(text)
    command = [*cxx_command(), "-Wall", "-c", str(source), "-o", os.devnull]
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_a_compile_error_stands_before_any_warning(compiler_log, tmp_path):
    unused = "".join(f"static int unused{i}() {{ int x; return x; }}\n" for i in range(50))
    said = compiled(tmp_path, unused + "int f() { return tpyo; }\n" + "static int last() {}\n")
    assert compiler_log.num_warnings(said) > 50
    shown = compiler_log.first_errors(said).splitlines()
    assert "kernel.cpp:51:" in shown[0] and "tpyo" in shown[0]
    assert "int f() { return tpyo; }" in shown[1]
    assert len(shown) == 4 and not any("warning" in line for line in shown[:2])


def test_five_errors_are_shown_and_the_others_counted(compiler_log, tmp_path):
    said = compiled(tmp_path, "".join(f"int f{i}() {{ return x{i}; }}\n" for i in range(8)))
    shown = compiler_log.first_errors(said)
    assert "x4" in shown and "x5" not in shown and shown.endswith("... and 3 more")


@pytest.mark.parametrize(
    "line",
    [
        "kernel.cu(12): error: identifier \"x\" is undefined",
        "kernel.cpp:3:10: fatal error: none.h: No such file or directory",
        "a.cpp:(.text+0x5): undefined reference to `f'",
        "/usr/bin/ld: cannot find -lnone",
        "ptxas fatal   : Unresolved extern function 'f'",
        "clang: error: unknown argument",
    ],
)  # fmt: skip
def test_what_is_an_error(compiler_log, line):
    log = "\n".join(["FAILED: x.o"] + ["a.h:1:1: warning: an unused error"] * 50 + [line])
    assert compiler_log.first_errors(log) == line


def test_without_an_error_line_the_end_is_shown(compiler_log):
    log = "\n".join(f"line {i}" for i in range(100))
    assert compiler_log.first_errors(log) == "\n".join(f"line {i}" for i in range(80, 100))


@pytest.mark.skipif(shutil.which("ninja") is None, reason="ninja is not on PATH")
def test_setup_shows_the_error_and_names_the_log(tmp_path):
    """The real setup.py, on a tree with one source file that is wrong."""
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "moge_bench").mkdir()
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    (tmp_path / "csrc/kernel.cpp").write_text(
        "static int f() { int x; return x; }\nint y = tpyo;\n"
    )
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=tmp_path,
        env={**os.environ, "MOGE_CUDA": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stderr.splitlines()
    first = next(line for line in said if "kernel.cpp" in line)
    assert "kernel.cpp:2:9: error:" in first and "tpyo" in first
    assert said[-1].startswith("moge-bench: building the extension failed")
    assert "build/compile.log" in said[-1]
    log = (tmp_path / "build/compile.log").read_text()
    assert "-Wuninitialized" in log or "-Wunused-function" in log  # everything is in it
