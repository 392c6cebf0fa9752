"""gpu-check: its verdicts and files on synthetic rows, and real kernels end to end."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_gpu_verdict import GOOD
from typer.testing import CliRunner

from tools.gpu_check import check, toolchain
from tools.gpu_check.__main__ import app
from tools.gpu_check.architectures import BY_NAME
from tools.gpu_check.cases import Case, all_cases
from tools.gpu_check.cost import read_csv
from tools.gpu_check.launches import Launch
from tools.gpu_check.measure import memory_bytes
from tools.gpu_check.toolchain import Toolchain, find_nvcc, find_nvdisasm
from tools.gpu_check.verdict import broken_bounds
from tools.interface import ELEMENTS, OPS
from tools.ptx import Traffic

CSRC = Path(__file__).resolve().parents[3] / "csrc"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command on rows that are given to it instead of measured; returns (exit code, text)."""
    tools = Toolchain("nvcc", "nvdisasm", tmp_path / "build")
    monkeypatch.setattr(Toolchain, "find", staticmethod(lambda cache: tools))
    monkeypatch.setattr(Toolchain, "version", lambda self: GOOD.nvcc)

    def command(rows, *arguments, kernels=None):
        kernels = kernels or {row.kernel for row in rows}
        monkeypatch.setattr(check, "cost_rows", lambda *rest: (rows, kernels))
        folders = ["--table", str(tmp_path), "--build", str(tmp_path), "--csrc", str(CSRC)]
        result = CliRunner().invoke(app, [*folders, *arguments])
        return result.exit_code, " ".join(result.output.split())

    return command


def test_the_committed_table_is_written_by_update_and_then_guards(run, tmp_path):
    code, text = run([GOOD], "--update")
    assert code == 0, text
    assert "| `route_forward<2, float>` |" in (tmp_path / "gpu_cost.md").read_text()
    assert run([GOOD])[0] == 0
    code, text = run([replace(GOOD, registers=48)])
    assert code == 1
    assert "route_forward<2, float> sm_90 T=8192 N=64 k=2: registers is 48, must be at most 40" in (
        text
    )


def test_an_update_of_some_cases_keeps_the_other_rows_of_kernels_that_exist(run, tmp_path):
    other, gone = (replace(GOOD, kernel=name) for name in ("combine_rows_kernel", "old_kernel"))
    assert run([GOOD, other, gone], "--update")[0] == 0
    changed, kernels = replace(GOOD, registers=48), {GOOD.kernel, other.kernel}
    code, text = run([changed], "--update", "--case", "route_forward", kernels=kernels)
    assert code == 0, text
    assert read_csv(tmp_path / "gpu_cost.csv") == [other, changed]


def test_a_broken_bound_fails_even_an_update(run):
    code, text = run([replace(GOOD, occupancy=0.25)], "--update")
    assert code == 1
    assert "occupancy is 0.25, must be at least 0.5" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "no such case"], "no case matches 'no such case'"),
        (["--csrc", "elsewhere"], "got elsewhere: no cuda/launch.h"),
    ],
)
def test_wrong_arguments_are_explained(run, arguments, message):
    code, text = run([GOOD], *arguments)
    assert code == 2
    assert message in text


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    with pytest.raises(RuntimeError, match="nvcc was not found: install"):
        Toolchain.find(tmp_path)
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(toolchain, "find_nvdisasm", lambda nvcc: None)
    with pytest.raises(RuntimeError, match=r"pip install .* nvidia-cuda-nvdisasm"):
        Toolchain.find(tmp_path)


def test_static_shared_memory_counts_against_the_48_kib():
    def launch(dynamic, raised):
        return Launch("k", (1, 1, 1), (32, 1, 1), dynamic, (), raised)

    launch(47776, None).check_shared(1376)  # 49152 together
    launch(47777, 47777).check_shared(1376)
    with pytest.raises(RuntimeError, match=r"47777 bytes .* beside 1376 static ones, .* 47776"):
        launch(47777, None).check_shared(1376)
    with pytest.raises(RuntimeError, match="allowed are 47777"):
        launch(47778, 47777).check_shared(0)


def test_the_cases_cover_every_op_and_element_once():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
    pairs = {(case.op, case.element) for case in all_cases()} - {("sort_choices", "float32")}
    assert pairs == {(op, e) for op in OPS if op != "sort_choices" for e in ELEMENTS}


@pytest.mark.parametrize(
    ("case", "least"),
    [
        # 64 x 4 logits + 2 x (4 weight + 8 expert) + 8 row statistics.
        (Case("route_forward", "float32", 8, 64), 288),
        # 2 x 64 x 2 + 8 + 2 x (4 + 8 + 4).
        (Case("route_backward", "float16", 8, 64), 296),
        (Case("group_norm_backward", "bfloat16", 8, 64), 256),
        # 64 x 4 + 2 x (4 + 8) + 8, and a byte of the mask.
        (Case("route_forward", "float32", 8, 64, wider=True), 289),
        # 2 x (2 x 256 x 4 + 4).
        (Case("gather_rows", "float32", 8, 64), 4104),
        # 2 x (256 x 4 + 8) + 256 x 4.
        (Case("combine_rows", "float32", 8, 64), 3088),
        (Case("sort_choices", "float32", 8, 64), None),
    ],
)
def test_least_bytes(case, least):
    assert case.min_bytes_per_token == least


@pytest.mark.parametrize(
    ("traffic", "buffer_bytes", "expected"),
    [
        # 4 tokens' 8 bytes each, in one sector: shared by neighbours, moved once.
        (Traffic(requests=4, sectors=4, distinct_sectors=1, bytes=32), 1 << 20, 32),
        # A word of every sector: whole sectors move.
        (Traffic(requests=1, sectors=32, distinct_sectors=32, bytes=128), 1 << 20, 1024),
        # Read twice: nothing is kept.
        (Traffic(requests=2, sectors=8, distinct_sectors=4, bytes=256), 1 << 20, 256),
        # Read by every warp, but so small that the cache keeps it.
        (Traffic(requests=8, sectors=32, distinct_sectors=4, bytes=1024), 128, 128),
    ],
)
def test_memory_bytes(traffic, buffer_bytes, expected):
    assert memory_bytes(traffic, buffer_bytes) == expected


@pytest.mark.slow
@pytest.mark.skipif(
    find_nvcc() is None or find_nvdisasm(find_nvcc()) is None or shutil.which("c++filt") is None,
    reason="needs nvcc, nvdisasm (extra gpu-check) and c++filt",
)
def test_real_kernels_end_to_end(tmp_path):
    # Only the small source files, so that compiling takes seconds.
    csrc = tmp_path / "csrc"
    small = [CSRC / "cuda/launcher.cu", CSRC / "cuda/rows.cu"]
    for path in [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), *small]:
        target = csrc / path.relative_to(CSRC)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    nvcc = find_nvcc()
    tools = Toolchain(nvcc, find_nvdisasm(nvcc), tmp_path / "build")
    case = Case("gather_rows", "float32", num_tokens=1024, num_experts=64)
    messages = []
    costs, kernels = check.cost_rows(tools, csrc, [case], [BY_NAME["sm_90"]], messages.append)
    assert len(costs) == 1 and costs[0].kernel in kernels
    cost = costs[0]
    assert cost.kernel.startswith("gather_rows_kernel<") and cost.architecture == "sm_90"
    # k rows of 256 floats are read and written: 2 x 2 x 32 sectors, and the slots beside them.
    assert 128 <= cost.sectors_per_token <= 132
    assert cost.bytes_per_token >= cost.min_bytes_per_token == 4104
    assert cost.sass_instructions > 50 and 16 <= cost.registers <= 255
    # 4104 B / 3.35 TB/s = 1.2251 ns.
    assert cost.floor_ns_per_token == 1.2251
    assert broken_bounds(costs) == []
    # The second time everything comes from the cache, and is the same.
    assert check.cost_rows(tools, csrc, [case], [BY_NAME["sm_90"]], messages.append)[0] == costs
