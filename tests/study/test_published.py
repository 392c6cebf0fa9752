import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from moge_bench.presets import PRESETS
from moge_bench.study.families import FAMILIES
from moge_bench.study.published import find_published, published_results

ROOT = Path(__file__).parents[2]
ROWS = list(csv.DictReader((ROOT / "results/published_results.csv").open()))


def test_every_row_of_the_file_can_be_named_and_has_its_source():
    found = [row for rows in published_results().values() for row in rows]
    assert [vars(row) for row in sorted(found, key=str)] == sorted(
        ROWS, key=lambda row: str(next(each for each in found if vars(each) == row))
    )
    assert len(found) == len(ROWS) >= 28
    assert all(row.source for row in found)


def test_a_number_stands_with_its_unit_metric_and_data():
    (found,) = find_published("SwinV2-T dense, 256 px window 8")
    assert found.cell(("top1_accuracy",)) == "81.8 % top-1 accuracy, ImageNet-1K val"
    assert found.cell(("perplexity", "tokens_per_second")) is None
    (found,) = find_published("MoE routing topologies, linear router, 76-84M, 50k steps")
    assert found.cell(("perplexity",)) == "32.76 perplexity, WikiText-103"


def test_one_name_may_have_a_row_for_each_data_set():
    found = find_published("V-MoE-S/32, 8 experts k=2 last-2 300 epochs from scratch")
    assert {row.dataset: row.value for row in found} == {
        "ImageNet-1K val": "73.1", "ImageNet-1K ReaL val": "74.4", "ImageNet-V2": "59.2",
    }  # fmt: skip


def test_what_no_source_tells_is_nothing():
    (found,) = find_published("MoGE (all models), any")
    assert found.cell(("top1_accuracy",)) is None


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="the nearest is 'SwinV2-T dense, 256 px window 8'"):
        find_published("SwinV2-T dense, window 8")


def test_every_row_stands_beside_a_system():
    named = Counter(
        name for family in FAMILIES for system in family.systems for name in system.beside
    )
    assert named.keys() == published_results().keys()
    # Each beside one system; that of MoGE, which has no number, beside every MoGE system.
    assert [name for name, count in named.items() if count > 1] == ["MoGE (all models), any"]


def test_the_families_are_the_systems_of_the_document():
    page = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    section = page.partition("\n## Systems\n")[2].partition("\n## ")[0]
    first_cells = re.findall(r"(?m)^\| ([^|]+) \|", section)
    documented = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    named = {system.name for family in FAMILIES for system in family.systems}
    # What can be run is tiny, an official scale of one of these, or one of these.
    scales = {name for name in PRESETS if name.endswith(("-released", "-submitted", "-unfair"))}
    assert documented - scales == {name for name in named if " " not in name} - {"MoE-LLaVA"}
    assert {name for name in PRESETS if not name.startswith("tiny-")} - scales <= named
