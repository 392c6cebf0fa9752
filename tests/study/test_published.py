import csv
from pathlib import Path

import pytest

from moge_bench.study.published import find_published, published_results

FILE = Path(__file__).parents[2] / "results/published_results.csv"


def test_every_row_of_the_file_can_be_named():
    rows = list(csv.DictReader(FILE.open()))
    assert len(published_results()) == len(rows)
    for row in rows:
        assert find_published(f"{row['system']}, {row['setting']}").value == row["value"]


def test_a_number_stands_with_its_unit_metric_and_data():
    found = find_published("SwinV2-T dense, 256 px window 8")
    assert found.cell(("top1_accuracy",)) == "81.8 % top-1 accuracy, ImageNet-1K val"
    assert found.cell(("perplexity", "tokens_per_second")) is None


def test_what_no_source_tells_is_nothing():
    assert find_published("MoGE (all models), any").cell(("top1_accuracy",)) is None


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="the nearest is 'SwinV2-T dense, 256 px window 8'"):
        find_published("SwinV2-T dense, window 8")
