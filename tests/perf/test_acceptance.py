"""What a person let through: how much of which case, and until when."""

import datetime
from pathlib import Path

import pytest

from moge_bench.perf import acceptance
from moge_bench.perf.acceptance import Acceptance
from moge_bench.perf.statistics import (
    ACCEPTED,
    INCONCLUSIVE,
    PASS,
    REGRESSION,
    decide_instructions,
    not_counted,
    overall,
)

DAY = datetime.date(2027, 1, 31)
ENTRY = "- {case: 'N=64', ratio: 1.08, reason: prefetches, until: 2027-01-31}\n"
N64 = "instructions/avx2 forward N=64 k=2 h=3"
N8 = "instructions/avx2 forward N=8 k=2 h=2"


def test_the_file_of_this_repository_can_be_read():
    path = Path(__file__).resolve().parents[2] / acceptance.PATH
    acceptance.parse(path.read_text(encoding="utf-8"))  # raises for one that cannot


def test_an_entry_is_read():
    assert acceptance.parse(ENTRY) == [Acceptance("N=64", 1.08, "prefetches", DAY)]
    assert acceptance.parse("# nothing yet\n") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("case: x", "must hold a list of entries, got dict"),
     ("- x", "entry 1 must have .*got x"),
     (ENTRY + "- {case: x, ratio: 1.1, until: 2027-01-31}", "entry 2 must have .*'reason'"),
     (ENTRY.replace("1.08", "much"), "ratio must be a number, got 'much'"),
     (ENTRY.replace("2027-01-31", "soon"), "until must be a date, 2027-01-31, got 'soon'"),
     (ENTRY.replace("1.08", "0.9"), "at least 1"), (ENTRY.replace("1.08", "true"), "got True"),
     (ENTRY.replace("prefetches", "' '"), "needs a case and a reason")],
)  # fmt: skip
def test_a_bad_entry_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        acceptance.parse(text)


@pytest.mark.parametrize(
    ("case", "head", "day", "verdict"),
    [(N64, 1080, DAY, ACCEPTED),  # 1080 / 1000 = 1.08, on its last day
     (N64, 1081, DAY, REGRESSION),  # beyond
     (N64, 1080, DAY + datetime.timedelta(1), REGRESSION),  # expired
     (N8, 1080, DAY, REGRESSION),  # another region
     (N64, 1010, DAY, PASS)],  # no regression, so nothing to accept
)  # fmt: skip
def test_only_what_was_accepted_is_let_through(case, head, day, verdict):
    decision = decide_instructions(case, 1000, head)
    (got,), notes = acceptance.apply([decision], acceptance.parse(ENTRY), day)
    assert got.verdict == verdict and got.ratio == decision.ratio
    assert overall([got]) == (PASS if verdict == ACCEPTED else verdict)
    assert bool(notes) == (verdict == REGRESSION and case == N64)


def test_what_base_accepts_already_holds_no_more():
    other = "- {case: 'N=8', ratio: 1.04, reason: wider, until: 2027-01-31}\n"
    assert acceptance.added(ENTRY, None) == acceptance.parse(ENTRY)
    assert acceptance.added(ENTRY + other, ENTRY) == acceptance.parse(other)
    assert acceptance.added(ENTRY, ENTRY) == acceptance.added(None, ENTRY) == []
    longer = ENTRY.replace("2027-01-31", "2027-03-31")  # somebody has looked at it again
    assert acceptance.added(longer, ENTRY) == acceptance.parse(longer)
    assert acceptance.added(ENTRY, "a: [") == acceptance.parse(ENTRY)


def test_what_is_accepted_would_not_have_been_seen():
    (got,), _ = acceptance.apply(
        [decide_instructions(N64, 1000, 1050)], acceptance.parse(ENTRY), DAY
    )  # fmt: skip
    assert got.detectable == 1.08


def test_a_region_that_is_gone_needs_an_acceptance():
    gone = not_counted(N64)
    assert overall([gone]) == INCONCLUSIVE
    (kept,), _ = acceptance.apply([gone], acceptance.parse(ENTRY.replace("64", "8")), DAY)
    (let,), _ = acceptance.apply([gone], acceptance.parse(ENTRY), DAY)
    assert (kept.verdict, let.verdict) == (INCONCLUSIVE, ACCEPTED)


def test_notes_say_why_an_acceptance_did_not_hold():
    decision = decide_instructions(N64, 1000, 1100)
    later = Acceptance("N=64", 1.2, "layout", DAY - datetime.timedelta(1))
    _, notes = acceptance.apply([decision], [*acceptance.parse(ENTRY), later], DAY)
    assert notes == [
        "avx2 forward N=64 k=2 h=3: 1.1000 is beyond the accepted 1.08",
        "avx2 forward N=64 k=2 h=3: its acceptance (layout) expired on 2027-01-30",
    ]
