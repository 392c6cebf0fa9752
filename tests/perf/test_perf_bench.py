"""Rows: a wrong or fallen-back candidate publishes no speed, and the good ones do."""

import itertools
import json
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from moge_bench.cli import perf as cli
from moge_bench.ops.topography import Topography
from moge_bench.perf import bench, candidates, layers, report, rows, timing
from moge_bench.perf.candidates import ROUTERS, Candidate, Options, softmax_topk
from moge_bench.perf.registry import Case

CASE = Case("router", 64, 16, 2, 3, threads=1)
REFERENCE = bench.Settings(rounds=5, warmup=0, compiled=False, options=Options("reference"))
COPY = next(c for c in ROUTERS if c.name == "copy")


def run(*extra: Candidate, case: Case = CASE, settings: bench.Settings = REFERENCE):
    result = bench.run_case(case, settings, [ROUTERS[0], COPY, *extra])
    return {row.candidate: row for row in result}


def no_speed(row: rows.Row) -> bool:
    return row.median_ms is None and row.ratio_to_ours is None and row.gb_per_s is None


@pytest.mark.parametrize("case", [
    CASE,
    Case("router", 33, 8, 8, 5, threads=1),  # torus: the window is larger than the 2 x 4 map
    Case("router", 40, 16, 1, 2, "collapsed", threads=1),
    Case("router", 40, 32, 4, 3, "zipf", dtype="bf16", threads=1),
])  # fmt: skip
def test_every_plain_candidate_passes_its_gate(case):
    result = bench.run_case(case, replace(REFERENCE, peers=True))
    for row in result:
        allowed = {rows.OK, rows.NOT_INSTALLED}
        if row.candidate == "transformers_mixtral" and case.top_k == 1:
            allowed.add(rows.NOT_APPLICABLE)
        assert row.status in allowed, f"{row.candidate}: {row.detail}"
        assert (row.status == rows.OK) == (row.median_ms is not None)


def _wrong_loss(case, options):
    def forward(logits):
        weights, experts, loss = ROUTERS[1].build(case, options)(logits)
        return weights, experts, loss * 1.001

    return forward


def _wrong_experts(case, options):
    def forward(logits):
        weights, experts, loss = ROUTERS[1].build(case, options)(logits)
        return weights, (experts + 1) % case.num_experts, loss

    return forward


def _wrong_gradient(case, options):
    def forward(logits):
        _, (weights, experts, _) = softmax_topk(logits, case)
        return weights + 0.01 * (logits - logits.detach())[:, :2], experts, None

    return forward


@pytest.mark.parametrize(
    ("build", "job", "complaint"),
    [(_wrong_loss, "moge", "loss error"), (_wrong_experts, "moge", "wrong experts"),
     (_wrong_gradient, "topk", "gradient error")],
)  # fmt: skip
def test_a_wrong_candidate_fails_and_has_no_speed(build, job, complaint):
    result = run(Candidate("bad", job, build))
    assert result["bad"].status == rows.WRONG and complaint in result["bad"].detail
    assert no_speed(result["bad"]) and result["ours"].median_ms is not None
    assert [row.candidate for row in report.failures(list(result.values()))] == ["bad"]


def test_a_silent_fallback_fails_the_row(monkeypatch):
    """route() that answers from the reference although the extension was asked for."""
    real = candidates.route

    def sly(*arguments, **keywords):
        return real(*arguments, **(keywords | {"backend": "reference"}))

    monkeypatch.setattr(candidates, "route", sly)
    row = run(settings=replace(REFERENCE, options=Options("extension")))["ours"]
    assert row.status == rows.FALLBACK and no_speed(row)


def test_a_backend_name_is_not_believed(monkeypatch):
    """A routing that says "extension" while no moge:: op is dispatched."""
    real = candidates.route

    def liar(*arguments, **keywords):
        routing = real(*arguments, **(keywords | {"backend": "reference"}))
        routing.backend = "extension"
        return routing

    monkeypatch.setattr(candidates, "route", liar)
    row = run(settings=replace(REFERENCE, options=Options("extension")))["ours"]
    assert row.status == rows.FALLBACK and "did not run" in row.detail and no_speed(row)


def test_broken_and_missing_candidates_say_why():
    def broken(case, options):
        raise RuntimeError("no such kernel")

    def missing(case, options):
        raise ImportError("No module named 'tutel'")

    result = run(Candidate("broken", "topk", broken), Candidate("missing", "topk", missing))
    assert result["broken"].status == rows.ERROR and "no such kernel" in result["broken"].detail
    assert result["missing"].status == rows.NOT_INSTALLED and "tutel" in result["missing"].detail
    assert no_speed(result["broken"]) and no_speed(result["missing"])


def test_group_matrix_by_hand():
    # 2 x 2 map, h = 2, one group: A[e] = g[u] g[v], g = (e^-0.5, 1) / (1 + e^-0.5) for h = 2.
    g = torch.tensor([torch.exp(torch.tensor(-0.5)), 1.0])
    g = g / g.sum()
    matrix = candidates.group_matrix(Topography(2, 2, 2))
    assert torch.allclose(matrix[:, 0], torch.outer(g, g).flatten())


def test_traffic_model_by_hand():
    # T=64, N=16, k=2, float32: 3*64*16*4 = 12288, and 128 choices * (2*12 + 4) = 3584.
    assert candidates.traffic_bytes("moge", CASE) == 12288 + 3584
    assert candidates.traffic_bytes("softmax", CASE) == 5 * 64 * 16 * 4
    assert candidates.traffic_bytes("copy", CASE) == 2 * 64 * 16 * 4


def test_layers_pass_their_gate():
    case = Case("moe_layer", 48, 8, 2, 2, threads=1, hidden_size=16, ffn_size=24)
    result = bench.run_case(case, replace(REFERENCE, peers=True))
    assert [row.candidate for row in result] == [c.name for c in layers.LAYERS]
    assert all(row.status == rows.OK for row in result), [row.detail for row in result]
    # 3 passes * 2 matrices * 2 operations * 48 tokens * 2 choices * 16 * 24 = 442368.
    assert layers.useful_flop(case) == 442368


def test_report_round_trip(tmp_path):
    result = list(run(Candidate("bad", "moge", _wrong_loss)).values())
    paths = report.write(result, {"device": "test"}, tmp_path, "bench_core")
    data = json.loads(paths[0].read_text())
    assert [row["candidate"] for row in data["rows"]] == ["ours", "copy", "bad"]
    text = paths[2].read_text()
    assert "| bad | wrong |" in text and "loss error" in text
    assert paths[1].read_text().count("\n") == 1 + len(result)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".md"]


def test_an_interrupted_run_goes_on_only_with_the_same_code_and_machine(tmp_path):
    result, facts = bench.run_case(CASE, REFERENCE, [ROUTERS[0], COPY]), {"commit": "a"}
    report.write(result, facts, tmp_path, "bench")
    assert report.resume(tmp_path, "bench", facts) == result
    assert report.resume(tmp_path, "bench", {"commit": "b"}) == []
    assert report.resume(tmp_path / "none", "bench", facts) == []


def test_the_overview_takes_the_fastest_formulation_and_the_least_ratio():
    def row(case, candidate, ratio):
        return rows.Row(case, candidate, "moge", rows.OK, "", fields={"op": "router"},
                        median_ms=2.0, ratio_to_ours=ratio)  # fmt: skip

    lines = report.overview([
        row("a", "ours", None), row("a", "authors_conv2d", 20.0), row("a", "matrix_product", 7.0),
        row("a", "torch_softmax", 0.5), row("b", "ours", None), row("b", "authors_conv2d", 12.0),
        row("b", "matrix_product_compiled", 14.0),
    ])  # fmt: skip
    assert lines[2:] == [
        "| a | 2.000 | 20.00 | 7.00 | 0.50 | - |", "| b | 2.000 | 12.00 | 12.00 | - | - |",
        "| least | - | 12.00 | 7.00 | 0.50 | - |", "",
    ]  # fmt: skip


def test_every_candidate_is_timed_by_the_given_clock():
    clock = {"a": 3.0, "b": 5.0}
    samples = timing.interleave(
        {"a": lambda: "a", "b": lambda: "b"}, rounds=3, warmup=1, clock=lambda call: clock[call()]
    )
    assert samples == {"a": [3.0] * 3, "b": [5.0] * 3}
    assert timing.clock_of("cpu") is timing.wall_clock
    assert timing.wall_clock(lambda: time.sleep(0.01)) >= 0.01


def test_every_candidate_follows_every_other_one_about_as_often():
    names, calls = "abcdef", []
    timing.interleave({n: (lambda n=n: calls.append(n)) for n in names}, rounds=600, warmup=0)
    rounds = ["".join(calls[i : i + 6]) for i in range(0, len(calls), 6)]
    assert all(sorted(one) == list(names) for one in rounds)
    assert all(one == two[::-1] for one, two in zip(rounds[::2], rounds[1::2], strict=True))
    after = Counter(one + two for one, two in itertools.pairwise(calls) if one != two)
    assert len(after) == 30 and min(after.values()) > 70 and max(after.values()) < 140


def test_ours_is_timed_without_the_wait_for_a_gpu(monkeypatch):
    """Only on a GPU: on the CPU the check for NaN costs no wait and stays on."""
    seen = []

    def noted(*arguments, **keywords):
        seen.append(keywords["nonfinite"])
        raise NotImplementedError

    monkeypatch.setattr(candidates, "route", noted)
    for device in ("cpu", "cuda:0"):
        with pytest.raises(NotImplementedError):
            ROUTERS[0].build(CASE, Options(device=device))(torch.zeros(2, 16))
    assert seen == ["error", "propagate"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_not_here_is_refused_before_anything_runs():
    result = CliRunner().invoke(cli.app, ["run", "--device", "cuda", "--limit", "1"])
    assert result.exit_code == 2 and "sees no GPU here" in result.output.replace("\n", " ")
    result = CliRunner().invoke(cli.app, ["run", "--device", "gpu", "--limit", "1"])
    assert result.exit_code == 2 and "cpu or a torch device like cuda:0, got 'gpu'" in result.output


@pytest.mark.parametrize(
    ("candidate", "status", "code"),
    [("authors_conv2d_compiled", rows.WRONG, 0), ("authors_conv2d_compiled", rows.ERROR, 1),
     ("ours", rows.WRONG, 1), ("ours_gated", rows.WRONG, 1), ("ours", rows.FALLBACK, 1)],
)  # fmt: skip
def test_a_run_fails_for_ours_alone(monkeypatch, tmp_path, candidate, status, code):
    """Another's candidate beyond its bound is named; that it cannot run at all is ours to mend."""
    row = rows.Row("c", candidate, "moge", status, "loss error 5.9e-07 above its bound 2.2e-07")
    monkeypatch.setattr(bench, "run_case", lambda case, settings: [row])
    result = CliRunner().invoke(cli.app, ["run", "--limit", "1", "--output", str(tmp_path)])
    assert result.exit_code == code
    said = result.output.replace("\n", " ")
    assert "above its bound" in said and ("1 of other people's candidates" in said) == (code == 0)
