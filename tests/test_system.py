"""What of the package asks the system."""

import subprocess

import pytest

from moge_bench.perf import machines
from moge_bench.system import cxx_command, cxx_flags, cxx_program


@pytest.mark.parametrize(("value", "words", "program", "flags"), [
    (None, ["g++"], "g++", []), ("", ["g++"], "g++", []),
    ("g++ -O0", ["g++", "-O0"], "g++", ["-O0"]),
    ("ccache g++", ["ccache", "g++"], "g++", []),
    ("/usr/bin/ccache '/my tools/g++-12' -m64", ["/usr/bin/ccache", "/my tools/g++-12", "-m64"],
     "/my tools/g++-12", ["-m64"]),
])  # fmt: skip
def test_the_compiler_may_be_several_words(monkeypatch, value, words, program, flags):
    monkeypatch.delenv("CXX", raising=False)
    if value is not None:
        monkeypatch.setenv("CXX", value)
    assert (cxx_command(), cxx_program(), cxx_flags()) == (words, program, flags)


def test_a_compiler_of_several_words_is_asked_for_its_version(monkeypatch):
    """env(1) stands for a launcher such as ccache, which need not be there."""
    monkeypatch.setenv("CXX", "env g++")
    version = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True).stdout
    assert machines.compiler_version() == f"env {version.strip()}"
