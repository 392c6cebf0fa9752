"""The rules from numbers to words, one by one, and in their order."""

import re
from pathlib import Path

import pytest

from moge_bench.study.verdicts import RULES, Evidence, judge

DOCUMENT = (Path(__file__).parents[2] / "docs/studies.md").read_text(encoding="utf-8")


def evidence(**changes):
    """Ten seeds, an estimate of 0.4 with a margin of 0.5, nothing shown; more is better."""
    values = {"n": 10, "mean": 0.4, "margin": 0.5, "towards": 1, "spread": True, "p": 0.2,
              "equivalence_p": 0.3, "selected": False}  # fmt: skip
    return Evidence(**values | changes)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"n": 2, "p": None, "equivalence_p": None}, "cannot tell"),
        ({"n": 2, "spread": False, "mean": 0.0}, "cannot tell"),  # two equal seeds are no evidence
        ({"n": 0, "spread": False, "mean": 0.0, "p": None, "equivalence_p": None}, "cannot tell"),
        # Of what is left of a study nothing follows, neither way.
        ({"selected": True, "p": 0.001}, "cannot tell"),
        ({"selected": True, "equivalence_p": 0.001}, "cannot tell"),
        ({"selected": True, "spread": False, "mean": 0.0}, "cannot tell"),
        ({"equivalence_p": 0.049}, "equivalent"),
        ({"equivalence_p": 0.05}, "cannot tell"),
        # A difference that is there, and too small to matter.
        ({"equivalence_p": 0.01, "p": 0.001}, "equivalent"),
        ({"p": 0.049}, "better"),
        ({"p": 0.05}, "cannot tell"),
        ({"p": 0.01, "mean": -0.4}, "worse"),
        ({"p": 0.01, "towards": -1}, "worse"),
        ({"p": 0.01, "towards": -1, "mean": -0.4}, "better"),
        ({"p": 0.01, "towards": 0}, "higher"),
        ({"p": 0.01, "towards": 0, "mean": -0.4}, "lower"),
        ({}, "cannot tell"),
        # The same in every seed: nothing to test, the margin decides.
        ({"spread": False, "p": None, "equivalence_p": None, "mean": 0.5}, "equivalent"),
        ({"spread": False, "p": None, "equivalence_p": None, "mean": 0.6}, "better"),
        ({"spread": False, "p": None, "equivalence_p": None, "mean": -0.6}, "worse"),
    ],
)
def test_rules(changes, verdict):
    assert judge(evidence(**changes)) == verdict


def test_every_rule_decides_something():
    cases = [
        evidence(n=2), evidence(selected=True), evidence(equivalence_p=0.01), evidence(p=0.01),
        evidence(p=0.01, mean=-0.4), evidence(p=0.01, towards=0),
        evidence(p=0.01, towards=0, mean=-1.0), evidence(),
    ]  # fmt: skip
    first = [next(i for i, rule in enumerate(RULES) if rule.holds(case)) for case in cases]
    assert first == list(range(len(RULES)))


def test_the_document_has_the_table():
    section = DOCUMENT.partition("## Verdicts")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \d+ \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    assert rows == [(rule.verdict, rule.when) for rule in RULES]
