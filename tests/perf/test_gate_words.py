"""The gate's words: a maintainer reads the headline and the worst case first."""

from dataclasses import replace

from moge_bench.perf import verdicts
from moge_bench.perf.statistics import (
    ACCEPTED,
    INCONCLUSIVE,
    PASS,
    REGRESSION,
    Decision,
    decide_instructions,
    not_counted,
)


def exact(num_experts: int, ratio: float) -> Decision:
    case = f"instructions/avx2 backward N={num_experts} k=2 h=3"
    return decide_instructions(case, 1000, round(1000 * ratio))


TIMED = Decision(
    "router/N64-k2-h3-T8192-uniform-fp32-valid-t2", "wall time", PASS, 1.0, 0.98, 1.02, 1.05,
    1.0812, "within", 80,
)  # fmt: skip


def test_the_headline_counts_and_names_the_worst():
    decisions = [exact(8, 1.05), exact(256, 3.0), exact(64, 1.0), TIMED]
    assert verdicts.headline(decisions) == (
        "2 of 3 kernel regions slower, worst 3.00x: avx2 backward N=256 k=2 h=3; "
        "none of 1 timed cases slower"
    )


def test_the_headline_tells_accepted_and_untold_apart():
    decisions = [replace(exact(8, 1.05), verdict=ACCEPTED), replace(TIMED, verdict=INCONCLUSIVE)]
    assert verdicts.headline(decisions) == (
        "1 of 1 kernel regions slower, as accepted; 1 of 1 timed cases could not be told"
    )


def test_the_summary_shows_each_once_the_worst_first():
    decisions = [exact(n, 1 + n / 1000) for n in range(30, 50)] + [TIMED]
    text = verdicts.summary(decisions, ["a note"], REGRESSION, "head against base")
    rows = [line for line in text.splitlines() if line.startswith("| avx2")]
    assert len(rows) == verdicts.MOST_ROWS and "N=49" in rows[0] and "N=48" in rows[1]
    assert f"And {20 - verdicts.MOST_ROWS} more" in text
    assert "- a note" in text and "accepted.yaml" in text
    assert "accepted.yaml" not in verdicts.summary([TIMED], [], PASS, "head against base")


def test_every_verdict_says_what_it_would_have_seen():
    # Counts: from 1.02 on; time: the threshold and two standard errors, here 1.0812.
    assert verdicts.smallest_seen([exact(64, 1.0), exact(8, 1.0), TIMED]) == [
        "2.0% more instructions in any of 2 kernel regions",
        "8.1% more wall time: router N=64 k=2 h=3, 8192 tokens, 2 threads",
    ]
    assert "8.1% more wall time" in verdicts.summary([TIMED], [], PASS, "head against base")


def test_a_reason_keeps_to_its_cell():
    odd = replace(exact(64, 1.05), reason="one | two\n| three |")
    text = verdicts.summary([odd], [], REGRESSION, "head against base")
    assert "| exact | one \\| two \\| three \\| |\n" in text


def test_what_was_compared_and_what_to_do_is_said():
    noisy = replace(TIMED, verdict=INCONCLUSIVE)
    text = verdicts.summary([noisy], [], INCONCLUSIVE, "abc against def (v0.1)")
    assert "\nabc against def (v0.1)\n" in text and "Run it again" in text
    text = verdicts.summary([not_counted("instructions/x")], [], INCONCLUSIVE, "a against b")
    assert "needs an entry" in text and "Run it again" not in text


def test_the_report_has_every_case_and_the_facts():
    text = verdicts.report([exact(64, 1.0), TIMED], [], PASS, "x against y", {"device": "EPYC"})
    assert "| avx2 backward N=64 k=2 h=3 | pass | 1.0000 | exact | 1.0200" in text
    assert "- device: EPYC" in text and text.startswith("## Performance gate: pass")
