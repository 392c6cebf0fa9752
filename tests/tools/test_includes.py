"""What a compiled file is named by: its source and the headers that it includes, no others."""

from pathlib import Path

import pytest

from tools.gpu_check import toolchain
from tools.includes import included_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a kernel that includes ``a.h``, which includes ``deep/b.h``, beside ``c.h``."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.h").write_text('#include <cstdint>\n#include "deep/b.h"\n')
    (tmp_path / "deep/b.h").write_text('#include "a.h"\n')  # a ring ends
    (tmp_path / "c.h").write_text("int unused;\n")
    kernel = tmp_path / "deep/kernel.cu"
    kernel.write_text('#include "a.h"\n// #include "c.h"\n')
    return kernel


def test_the_headers_of_headers_are_found_and_no_others(source):
    folder = source.parents[1]
    found = included_files(source, [folder])
    assert sorted(path.relative_to(folder).as_posix() for path in found) == [
        "a.h", "deep/b.h", "deep/kernel.cu",
    ]  # fmt: skip


def test_gpu_check_compiles_again_what_has_changed_and_nothing_else(source):
    folder = source.parents[1]
    before = toolchain._key([source], folder, ["-O3"])
    (folder / "c.h").write_text("int more;\n")
    assert toolchain._key([source], folder, ["-O3"]) == before
    (folder / "deep/b.h").write_text("int more;\n")
    assert toolchain._key([source], folder, ["-O3"]) != before
    assert toolchain._key([source], folder, ["-O2"]) != before
