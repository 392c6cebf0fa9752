"""What a person let through: how much of which case, and until when."""

import datetime
from pathlib import Path

import pytest

from moge_bench.perf import acceptance
from moge_bench.perf.acceptance import Acceptance
from moge_bench.perf.statistics import ACCEPTED, PASS, REGRESSION, decide_instructions, overall

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


def test_notes_say_why_an_acceptance_did_not_hold():
    decision = decide_instructions(N64, 1000, 1100)
    later = Acceptance("N=64", 1.2, "layout", DAY - datetime.timedelta(1))
    _, notes = acceptance.apply([decision], [*acceptance.parse(ENTRY), later], DAY)
    assert notes == [
        "avx2 forward N=64 k=2 h=3: 1.1000 is beyond the accepted 1.08",
        "avx2 forward N=64 k=2 h=3: its acceptance (layout) expired on 2027-01-30",
    ]
