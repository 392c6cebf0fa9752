"""answer.json and answer.md: what they say, of complete and incomplete studies, to the byte."""

import json

import pytest
from study_samples import cells, make_study, read_answer

from moge_bench.publish.answers import rounded
from moge_bench.publish.sentences import (
    answer_sentence,
    probability,
    quantity,
    sentence,
    subject,
)
from moge_bench.publish.tables import write_tables
from moge_bench.runs.store import RecordStore
from moge_bench.study.declared import DeclaredContrast

STUDY = """
name: golden
question: Does the gain grow with N?
primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}
base: {preset: tiny-vit, seeds: 4}
axes:
  moe.num_experts: [16, 64]
  method: [moe, moge]
table: {rows: moe.num_experts, columns: method, metrics: [top1_accuracy, tokens_per_second]}
"""
SECOND = """
secondary:
- {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5, at: {moe.num_experts: 64}}
- {metric: top1_accuracy, contrast: [moge, moe], margin: 0.1, over: moe.num_experts}
"""


def gains(*by_seed):
    """Return the accuracy of runs of which moge gains ``by_seed`` at 16, and twice that at 64."""

    def accuracy(config):
        gain = by_seed[config.seed] if config.method == "moge" else 0.0
        return 70.0 + config.seed + gain * (config.moe.num_experts // 32 or 1)

    return accuracy


GROWING = gains(0.1, 0.2, 0.3, 0.4)


def answer(root, text=STUDY, accuracy=GROWING):
    make_study(root, text, accuracy)
    write_tables(read_answer(root), root / "studies/golden")
    return json.loads((root / "studies/golden/answer.json").read_text())


def test_golden_answer(tmp_path):
    found = answer(tmp_path)
    primary = found["primary"]
    # 1.5 times 0.1 to 0.4: mean 0.375, spread 1.5 * 0.129099 = 0.193649; t(0.975, 3) = 3.18245:
    # half width 3.18245 * 0.193649 / 2 = 0.308139. t = 0.375 / 0.0968 = 3.873, p = 0.0305.
    expected = {"estimate": 0.375, "low": 0.066861, "high": 0.683139, "p": 0.030466}
    assert {name: primary[name] for name in expected} == pytest.approx(expected, abs=2e-6)
    assert primary["seeds"] == pytest.approx({"0": 0.15, "1": 0.3, "2": 0.45, "3": 0.6})
    assert (primary["n"], primary["seeds_planned"], primary["complete"]) == (4, 4, True)
    assert (found["verdict"], found["primary"]["verdict"]) == ("better", "better")
    assert found["sentence"] == (
        "Better: moge against moe, +0.38 points of test top-1 (95 % interval +0.07 to +0.68; "
        "p = 0.030; n = 4 seeds, over 2 cells)."
    )
    # dz = 2.1277 shows at n = 4: 2.1277 * 0.193649.
    assert primary["smallest_effect"] == pytest.approx(0.4120, abs=1e-3)
    assert found["code"] == {"commit 0123456789": 16}
    digest = read_answer(tmp_path).results.study.digest
    assert found["declaration"]["digest"] == digest
    assert found["declaration"]["records_before"] == 16  # they are from January


def test_every_number_leads_to_its_runs(tmp_path):
    found = answer(tmp_path)
    store = RecordStore(tmp_path)
    for cell in found["primary"]["cells"]:
        values = {"moge": [], "moe": []}
        for seed, runs in cell["runs"].items():
            ours, theirs = map(store.read, runs)
            assert (ours.seed, ours.settings.method) == (int(seed), "moge")
            assert (theirs.seed, theirs.settings.method) == (int(seed), "moe")
            assert ours.settings.moe.num_experts == cell["at"]["moe.num_experts"]
            for record in (ours, theirs):
                values[record.settings.method].append(record.value("top1_accuracy", "test"))
        difference = sum(values["moge"]) / 4 - sum(values["moe"]) / 4
        assert cell["estimate"] == pytest.approx(difference)
        assert cell["weight"] == 0.5
    # The table's differences of the same metric, with theirs.
    assert [row["arm"] for row in found["differences"]] == ["16 moge", "64 moge"]
    for row in found["differences"]:
        assert row["family"] == 2
        assert row["p_holm"] == pytest.approx(min(1, 2 * row["p"]))  # equal ts, equal ps
        assert all(store.read(run) is not None for runs in row["runs"].values() for run in runs)


@pytest.mark.parametrize(
    ("by_seed", "words"),
    [
        ((-0.1, -0.2, -0.3, -0.4), ["Worse: moge against moe, -0.38 points"]),
        (
            (0.01, -0.01, 0.02, -0.02),
            [
                "Equivalent within 0.5 points: moge against moe, 0.00 points",
                "; the 90 % interval, -0.03 to +0.03, lies within the margin (p < 0.001)",
                "the smallest true effect that this n shows with 80 % power is 0.06 points.",
            ],
        ),
        (
            (1.0, -1.0, 2.0, -2.0),
            [
                "Cannot tell: moge against moe, 0.00 points of test top-1 (95 % interval -4.36 to",
                "shows with 80 % power is 5.83 points; about 259 seeds would decide on the margin "
                "of 0.5 points.",
            ],
        ),
        ((0.2, 0.2, 0.2, 0.2), ["Equivalent within 0.5 points:", "the same in every seed; n = 4"]),
    ],
)
def test_verdicts_in_words(tmp_path, by_seed, words):
    said = answer(tmp_path, accuracy=gains(*by_seed))["sentence"]
    for part in words:
        assert part in said


def test_what_is_missing_makes_it_provisional(tmp_path):
    grid = make_study(tmp_path, STUDY, GROWING)
    store = RecordStore(tmp_path)
    for config in grid.configs:
        if config.seed == 3 and config.method == "moge":
            store.path(config.run_id).unlink()
    said = answer_sentence(read_answer(tmp_path))
    assert "n = 3 of 4 seeds, over 2 cells" in said
    assert said.endswith(" Provisional: 2 runs not trained yet.")
    for config in grid.configs:
        if config.moe.num_experts == 64 and config.method == "moge":
            store.path(config.run_id).unlink(missing_ok=True)
    said = answer_sentence(read_answer(tmp_path))
    assert said.endswith(
        " Provisional: 5 runs not trained yet. Left out, no seed has both arms: experts 64."
    )
    write_tables(read_answer(tmp_path), tmp_path / "studies/golden")
    page = (tmp_path / "studies/golden/answer.md").read_text()
    assert cells(page, "Cells of the primary contrast: moge against moe")[-1] == [
        "experts 64", "-", "0", "left out",
    ]  # fmt: skip
    assert "* missing: 64 moge seed 0 (" in page
    for config in grid.configs:
        store.path(config.run_id).unlink(missing_ok=True)
    said = answer_sentence(read_answer(tmp_path))
    assert said.startswith(
        "Cannot tell: moge against moe in points of test top-1: no seed has both"
    )


def test_secondary_contrasts_stand_beside_the_primary(tmp_path):
    answer(tmp_path, STUDY + SECOND, gains(0.5, 0.7, 0.7, 0.9))
    at_64, trend = map(sentence, read_answer(tmp_path).secondary)
    # At 64 twice the gain, mean 1.4; from 16 to 64, two doublings, it grows by 0.7. The gains'
    # spread is 0.163: t = 0.7 / (0.163 / 2) = 8.57, p = 0.0033, twice that after Holm.
    assert "+1.40 points of test top-1 at experts 64 (95 % interval" in at_64
    assert "p = 0.007, Holm; n = 4 seeds)." in at_64
    assert trend.startswith(
        "Better with more experts: moge against moe, +0.35 points of test top-1"
    )
    assert "per doubling of experts (95 %" in trend
    page = (tmp_path / "studies/golden/answer.md").read_text()
    rows = cells(page, "Declared contrasts")
    assert [row[0].partition(":")[0] for row in rows[1:]] == ["primary", "secondary", "secondary"]
    assert len(rows[0]) == 6 and rows[1][1].startswith("**+1.05 [")


def test_a_study_that_declares_nothing_claims_nothing(tmp_path):
    found = answer(tmp_path, "\n".join(x for x in STUDY.splitlines() if "primary" not in x))
    assert (found["verdict"], found["primary"], found["secondary"]) == (None, None, [])
    assert "nothing in this study is a claim" in found["sentence"]
    assert [row["arm"] for row in found["differences"]] == ["16 moge", "64 moge"]


def test_the_answer_heads_the_tables(tmp_path):
    make_study(tmp_path, STUDY, GROWING)
    markdown = write_tables(read_answer(tmp_path), tmp_path / "studies/golden")
    assert "**Answer:** Better: moge against moe, +0.38" in markdown.partition("## Quality")[0]
    assert "% Answer: Better: moge" in (tmp_path / "studies/golden/tables.tex").read_text()
    assert "Smallest true difference that one of them alone, not bold, would" in markdown


def test_numbers_are_written_without_their_last_bits():
    assert rounded({"a": [0.1 + 0.2, 1], "b": None, 3: True}) == {
        "a": [0.3, 1], "b": None, "3": True,
    }  # fmt: skip
    assert rounded(1.23456789012e-30) == 1.23456789e-30


def test_what_is_compared_in_what():
    declared = DeclaredContrast(
        metric="perplexity", contrast=(3, 2), axis="moe.group.size", margin=1,
        at={"moe.group.weight": [100.0, 0.5]}, over="moe.score_function",
        between=("sigmoid", "softmax"),
    )  # fmt: skip
    assert subject(declared) == "group size 3 against 2"
    assert quantity(declared) == (
        "% of test perplexity at lambda 100 or 0.5 more at score function sigmoid than at softmax"
    )


def test_probabilities():
    assert [probability(p) for p in (None, 0.0004, 0.034, 1.0)] == [
        "-",
        "< 0.001",
        "0.034",
        "1.000",
    ]


def test_a_margin_that_is_moved_later_shows(tmp_path):
    answer(tmp_path)
    moved = STUDY.replace("margin: 0.5", "margin: 0.001")
    make_study(tmp_path, moved, GROWING)
    write_tables(read_answer(tmp_path), tmp_path / "studies/golden")
    first, second = read_answer(tmp_path).results.declarations
    page = (tmp_path / "studies/golden/answer.md").read_text()
    assert f"Declared (digest {second.digest})" in page
    assert f"An earlier declaration (digest {first.digest}): {first.declared}." in page
