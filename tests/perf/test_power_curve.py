"""The power curve's page, from decisions made here; measuring it is for a quiet machine."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import power_curve
import prove_gate

from moge_bench.perf import gate
from moge_bench.perf.revisions import Revision
from moge_bench.perf.statistics import Decision


def decision(verdict, ratio=1.0, detectable=1.08):
    return Decision("c", "cpu time", verdict, ratio, 1.0, 1.1, 1.05, detectable, "", 80)


def test_a_share_has_its_exact_interval():
    # All of 20: Clopper and Pearson's lower end is 0.025^(1/20) = 0.832.
    assert power_curve.share(20, 20) == "20 of 20 (95 %: 83 to 100)"
    assert power_curve.share(0, 20) == "0 of 20 (95 %: 0 to 17)"


def test_the_page_has_a_line_a_percentage_and_case():
    runs = {"0": [[decision("pass").fields()]] * 3,
            "5": [[decision("regression", 1.05, d).fields()] for d in (1.03, 1.04)]
            + [[decision("inconclusive", 1.05, 1.2).fields()]]}  # fmt: skip
    data = {"facts": {"device": "EPYC"}, "instructions": {"5": [1.051, 1.062]}, "runs": runs}
    rows = [line for line in power_curve.markdown(data).splitlines() if line.startswith("| ")][1:]
    assert rows[0].startswith("| 0 % | 1.000 to 1.000 | c | 0 of 3 ")
    # 2 of 3 caught; the middle of 1.03, 1.04 and 1.2 is 1.04.
    assert rows[1].startswith("| 5 % | 1.051 to 1.062 | c | 2 of 3 (95 %: 9 to 99) | 1 | 4.0% |")


@pytest.mark.parametrize(("percent", "code"), [(1, "* 1 / 100"), (10, "* 10 / 100")])
def test_the_code_repeats_what_it_is_asked_to(percent, code):
    assert prove_gate.repeat(percent).count(f"a.num_tokens {code};") == 2  # forward and backward
    assert "PERCENT" not in prove_gate.repeat(percent)


def test_an_interrupted_curve_goes_on(tmp_path, monkeypatch):
    timed = []
    revision = Revision("head", "c1", tmp_path, "k")
    monkeypatch.setattr(
        prove_gate, "build_all", lambda repo, cache, slowed: dict.fromkeys(
            ["unchanged", *slowed], revision),
    )  # fmt: skip
    monkeypatch.setattr(
        gate, "compare_instructions", lambda base, head, threshold: ([decision("pass")], {}, [])
    )
    monkeypatch.setattr(power_curve.rows, "environment", lambda device: {"device": "EPYC"})

    def one_run(base, head):
        timed.append(head)
        return [decision("pass").fields()]

    monkeypatch.setattr(power_curve, "one_run", one_run)
    for runs, wanted in ((1, 2), (3, 6)):  # a run at 0 % and at 5 %, then two more of each
        monkeypatch.setattr(sys, "argv", ["x", "--runs", str(runs), "--percents", "5", "--output",
                                          str(tmp_path), "--cache", str(tmp_path)])  # fmt: skip
        power_curve.main()
        assert len(timed) == wanted
    assert "0 of 3" in (tmp_path / "gate_power.md").read_text()
