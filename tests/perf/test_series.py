"""The figures that the gate does not judge: each by hand, and how history and page take them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.perf import cells, history, history_page, revisions, series
from moge_bench.perf.series import Figure

FACTS = {"device": "EPYC", "capability": "AVX2", "cpus": 2, "torch": "2.13.0"}
LAUNCH = '"T=65536 N=64 k=2 h=3 torus float32","13.0, V13.0.88"'
COST = f"""kernel,architecture,launch,nvcc,ptx_instructions_per_token
"route_forward_subwarp_kernel<SubMap<8, 8, 3, true> >",sm_90,{LAUNCH},70.5
"route_forward_subwarp_kernel<SubMap<8, 8, 3, true> >",sm_80,{LAUNCH},71
route_reduce_kernel,sm_90,{LAUNCH.replace("N=64", "N=16")},1
"""


def test_a_training_step_is_time_per_token_with_the_quartiles_turned_round(monkeypatch):
    speed = {"median": 2000.0, "lower": 1000.0, "upper": 4000.0, "n": 5}
    found = {"arm": {"tokens_per_second": speed, "peak_memory_mib": 51.5}}
    monkeypatch.setattr(cells, "measure", lambda configs: found)
    first, memory, *_ = series.training_steps()
    # 1e6 / 2000 tokens a second; the fastest quarter, 1e6 / 4000, is the lower quartile.
    assert first == Figure("training step of tiny-vit", "µs per token", 500.0, 250.0, 1000.0)
    assert memory.value == 51.5 and memory.low is None


def test_a_call_is_one_of_those_that_were_timed_together(monkeypatch):
    monkeypatch.setattr(
        series, "interleave", lambda calls, rounds: {n: [4e-5, 2e-5, 6e-5] for n in calls}
    )
    route, norm = series.call_overhead()
    assert route.case == "call of route on one token" and route.unit == norm.unit == "µs"
    # 4e-5 s / 20 calls = 2 µs; quartiles of 1, 2 and 3.
    assert [route.low, route.value, route.high] == pytest.approx([1.5, 2.0, 2.5])


def test_the_import_is_measured_after_torch(monkeypatch):
    monkeypatch.setattr(series, "IMPORTS", 1)
    time_ms, modules = series.import_cost()
    assert time_ms.value > 0
    assert 10 < modules.value < 500  # of torch there are more than a thousand


def test_libraries_are_named_and_weighed(tmp_path):
    (tmp_path / "_C.cpython-311-x86_64-linux-gnu.so").write_bytes(b"x" * 2**19)
    (tmp_path / "other.so").write_bytes(b"x")
    assert list(series.installed_size(tmp_path)) == [
        Figure("size of the CPU extension", "MiB", 0.5, exact=True)
    ]


def test_of_the_cost_report_one_architecture_and_size(tmp_path):
    table = tmp_path / "gpu_cost.csv"
    assert list(series.gpu_cost(table)) == []
    table.write_text(COST)
    assert list(series.gpu_cost(table)) == [
        Figure("sm_90 route_forward_subwarp N=64 k=2 h=3 torus float32",
               "PTX instructions per token", 70.5, exact=True, machine="cost report, nvcc 13.0")
    ]  # fmt: skip


def test_another_checkout_than_the_imported_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"imported from .*, not from"):
        list(series.measure_all(tmp_path, with_wheel=False))


@pytest.mark.parametrize(("changed", "lines"), [(b" M setup.py\n", 0), (b"", 2)])
def test_only_a_committed_tree_is_recorded(changed, lines, tmp_path, monkeypatch):
    figures = [Figure("a", "ms", 2.0, 1.0, 3.0), Figure("b", "MiB", 5.0, machine="report")]
    monkeypatch.setattr(series, "measure_all", lambda repo, with_wheel: figures)
    monkeypatch.setattr(revisions, "resolve", lambda repo, ref: "c0ffee")
    monkeypatch.setattr(revisions, "run_git", lambda repo, *arguments: changed)
    monkeypatch.setattr(revisions, "repository_root", lambda start: tmp_path)
    done = CliRunner().invoke(app, ["perf", "series", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    path = tmp_path / "history.jsonl"
    assert len(history.read(path)) == lines
    if lines:
        first, second = map(json.loads, path.read_text().splitlines())
        assert first["lower_quartile"] == 1.0 and "lower_quartile" not in second
        assert second["machine"] == "report"


def test_the_page_draws_them_with_their_unit():
    def entry(commit, value):
        return series.entries([Figure("size of it", "MiB", value, exact=True)], commit, FACTS)[0]

    before, after = entry("a" * 12, 2.0), entry("b" * 12, 2.5)
    assert history_page.unit(after) == "MiB" and history_page.value(after) == 2.5
    assert history_page.last_change([before, entry("b" * 12, 2.001)]) is None  # 0.05 %
    page = history_page.page([before, after], {"a" * 12: (0, "one"), "b" * 12: (1, "two")})
    assert "size of it: MiB" in page and "+25.0 %" in page and "EPYC, avx2, 2 cores" in page


def test_a_single_time_is_no_exact_figure():
    def entry(value):
        return series.entries([Figure("t", "s", value)], "a", FACTS)[0]

    assert history_page.last_change([entry(1.0), entry(1.5)]) is None


@pytest.mark.slow
def test_a_wheel_is_made_and_weighed(monkeypatch):
    monkeypatch.setenv("MOGE_COMPILE", "0")  # which takes minutes
    seconds, size = series.wheel(Path(__file__).resolve().parents[2])
    assert seconds.value > 1 and 100 < size.value < 20_000
