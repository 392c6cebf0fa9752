import csv
from pathlib import Path

import pytest
from record_samples import make_record

from moge_bench.publish.tables import write_tables
from moge_bench.runs.record import RecordStore
from moge_bench.study.grid import parse_grid
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


def test_the_table_shows_it_beside_its_method_and_names_the_source(tiny_text, tmp_path):
    published = "  published: {dense: 'SwinV2-T dense, 256 px window 8'}\n"
    grid = parse_grid(tiny_text + published, "grid")
    store = RecordStore(tmp_path)
    for config in grid.configs:
        store.write(make_record(config))
    markdown = write_tables(grid, store, tmp_path / "tables")
    lines = [line.strip("| ") for line in markdown.splitlines() if line.startswith("|")][2:]
    last = {line.split("|")[2].strip(): line.split("|")[-1].strip() for line in lines}
    assert last == {
        "dense": "81.8 % top-1 accuracy, ImageNet-1K val", "moe": "-", "moge": "-",
    }  # fmt: skip
    assert "256 px window 8: microsoft/Swin-Transformer MODELHUB.md." in markdown
