"""A compiled library that does not fit the torch or the Python that runs is named as such."""

import importlib
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

from moge_bench.ops import extension, loading

RUNS = ".".join(torch.__version__.split(".")[:2])
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package `shelf`, whose folder is returned."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shelf", raising=False)
    importlib.import_module("shelf")
    yield folder
    sys.modules.pop("shelf")


def test_nothing_built_is_not_found(package):
    module, problem = loading.load_library("shelf._C")
    assert module is None and problem == "ModuleNotFoundError: No module named 'shelf._C'"


def test_a_build_for_another_torch_is_not_tried(package):
    # 1.9 is older than any torch that the package runs with.
    (package / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(
        b"\x7fELF\0moge_bench._C is built for torch 1.9.1\0"
    )
    module, problem = loading.load_library("shelf._C")
    assert module is None
    assert problem == f"it was built for torch 1.9, and {torch.__version__} runs"


def test_a_build_for_this_torch_is_tried(package):
    # Tried, and found to be no library at all.
    path = package / f"_C{EXTENSION_SUFFIXES[0]}"
    path.write_bytes(f"moge_bench._C is built for torch {RUNS}.7".encode())
    assert "ImportError" in loading.load_library("shelf._C")[1]


def test_builds_for_other_pythons_are_named(package):
    for tag in ("cpython-39-x86_64-linux-gnu", "cpython-310-x86_64-linux-gnu"):
        (package / f"_C.{tag}.so").touch()
    wanted = f"it was built for Python 3.10 and 3.9, and {HERE} runs"
    if HERE != "3.10":
        assert loading.load_library("shelf._C")[1] == wanted
    (
        package / f"_C{EXTENSION_SUFFIXES[0]}"
    ).touch()  # beside one for this Python they are no matter
    assert loading.misfit("shelf._C") is None


def test_a_missing_symbol_is_another_torch(package, monkeypatch):
    def fail(name):
        raise ImportError("/x/_C.so: undefined symbol: _ZN3c106detail14torchCheckFailEv")

    monkeypatch.setattr(importlib, "import_module", fail)
    problem = loading.load_library("shelf._C")[1]
    assert problem == (
        f"it was built for another torch than {torch.__version__}, which runs and has no "
        "_ZN3c106detail14torchCheckFailEv"
    )


def test_the_extension_says_in_its_file_which_torch_it_is_for():
    module, problem = extension.load()
    assert module is not None, problem
    with open(module.__file__, "rb") as file:
        assert loading.MARKER.search(file.read())[1].decode() == RUNS


def test_the_ops_that_are_asked_for_are_those_that_are_registered():
    csrc = Path(__file__).parents[2] / "csrc"
    text = "".join(path.read_text() for path in [*csrc.glob("*.cpp"), *csrc.glob("cpu/*.cpp")])
    assert set(re.findall(r'library\.def\(\s*"(\w+)\(', text)) == set(extension.OPS)


def test_a_build_without_an_op_of_this_code_is_not_used(monkeypatch):
    monkeypatch.setattr(extension, "OPS", ("route", "invent"))
    module, problem = extension.load.__wrapped__()  # anew: what is returned is remembered
    assert module is None and problem == "it is older than this moge_bench: it has no op invent"


def test_what_does_not_fit_is_said_at_import_and_nothing_built_is_not(monkeypatch):
    monkeypatch.setattr(extension, "_MODULE", None)
    monkeypatch.setattr(extension, "_CUDA", None)
    for problem, said in (
        ("it was built for torch 1.9, and 2.13.0 runs",
         ["the extension moge_bench._C is not usable: it was built for torch 1.9, and 2.13.0 runs; "
          f"{extension.BUILD_HINT}"]),
        ("ModuleNotFoundError: No module named 'moge_bench._C'", []),
    ):  # fmt: skip
        monkeypatch.setattr(extension, "_ERROR", problem)
        monkeypatch.setattr(extension, "_CUDA_ERROR", problem)
        assert list(extension.unusable_builds()) == said
