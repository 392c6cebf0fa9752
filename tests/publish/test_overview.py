"""All answers on one page: the primary contrasts as a family, what studies share pooled."""

import json

import pytest
from study_samples import cells, make_study, read_answer

from moge_bench.publish.overview import write_overview
from moge_bench.runs.store import RecordStore
from moge_bench.study.answer import in_order

ONE = """
name: one
question: Does it help?
primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}
base: {preset: tiny-vit, seeds: 4}
axes: {method: [moe, moge], moe.num_experts: [16, 64]}
table: {rows: [moe.num_experts, method], metrics: top1_accuracy}
"""
TWO = ONE.replace("name: one", "name: two").replace("[16, 64]", "[16]")
TREND = ONE.replace("name: one", "name: trend").replace("0.5}", "0.5, over: moe.num_experts}")
SILENT = ONE.replace("name: one", "name: silent").replace("primary:", "#")


def accuracy(config):
    """MoGE gains 1, 2, 3, 4 at 16 experts and nothing at 64."""
    gains = config.method == "moge" and config.moe.num_experts == 16
    return 70.0 + (config.seed + 1 if gains else 0) + 0.1 * config.seed


@pytest.fixture
def page(tmp_path):
    root = tmp_path / "results"
    for text in (ONE, TWO, TREND, SILENT):
        make_study(root, text, accuracy, speed=False)
    write_overview([read_answer(root, name) for name in ("one", "two", "trend", "silent")], root)
    return (root / "answers.md").read_text(), json.loads((root / "answers.json").read_text())


def test_every_primary_contrast_has_a_row(page):
    markdown, values = page
    rows = cells(markdown, "Primary contrasts")
    assert [row[0] for row in rows[1:]] == ["one", "two", "trend"]
    assert rows[2][1] == "moge against moe, points of test top-1"
    assert rows[2][2] == "+2.50 [+0.45; +4.55] (n = 4 seeds)"
    # 0.5, 1, 1.5, 2 (the mean of two cells), 1 to 4, and the slope -0.5 to -2: t = 3.873, p =
    # 0.0305 each; of three, Holm makes 0.0914 of it, and nothing is bold.
    assert [each["p"] for each in values["studies"]] == pytest.approx([0.030466] * 3, abs=1e-6)
    assert [each["p_over_studies"] for each in values["studies"]] == pytest.approx(
        [0.091399] * 3, abs=1e-6
    )
    assert [row[5] for row in rows[1:]] == ["better", "better", "worse"]
    assert "silent: No primary contrast is declared" in markdown


def test_what_studies_share_is_pooled_over_its_pairs(page):
    markdown, values = page
    (pooled,) = values["pooled"]  # a trend is no mean, and stays by itself
    assert pooled["studies"] == ["one", "two"]
    # The pairs at 16 are the same in both: 4 there and 4 at 64, mean (10 + 0) / 8.
    assert (pooled["pairs"], pooled["seeds"], pooled["estimate"]) == (8, 4, 1.25)
    row = cells(markdown, "Over studies that ask the same")[1]
    assert row[0].endswith("test top-1; tiny-vit, fashion-mnist-10k")
    assert row[1:4] == ["one, two", "+1.25 [+0.22; +2.28]", "8 pairs, 4 seeds"]


def test_without_a_study_that_declares_it_says_so(tmp_path):
    make_study(tmp_path, SILENT, accuracy, speed=False)
    write_overview([read_answer(tmp_path, "silent")], tmp_path)
    assert "| study" not in (tmp_path / "answers.md").read_text()
    assert json.loads((tmp_path / "answers.json").read_text())["without_primary"] == ["silent"]


def test_answers_come_before_what_is_to_come(tmp_path):
    """Complete, with some of its runs, with none, nothing declared; whatever their names are."""
    names = {"done": "z_done", "some": "y_some", "none": "b_none", "silent": "a_silent"}
    for which, name in names.items():
        text = (SILENT if which == "silent" else TWO).split("name: ", 1)[1].split("\n", 1)[1]
        text = f"name: {name}\n{text}"
        grid = make_study(tmp_path / which, text, accuracy, speed=False, runs=which != "none")
        if which == "some":
            RecordStore(tmp_path / which).path(grid.configs[-1].run_id).unlink()
    answers = [read_answer(tmp_path / which, name) for which, name in names.items()]
    answers = sorted(answers, key=lambda answer: answer.results.study.name)
    found = [answer.results.study.name for answer in in_order(answers)]
    assert found == list(names.values())
    write_overview(answers, tmp_path)
    rows = cells((tmp_path / "answers.md").read_text(), "Primary contrasts")
    assert [row[0] for row in rows[1:]] == list(names.values())[:3]
