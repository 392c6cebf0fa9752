"""What a caption and a heading call things: the results folder, the split of a number."""

from pathlib import Path

import pytest
from study_samples import ROWS

from moge_bench.publish.captions import results_folder
from moge_bench.study.frame import figures
from moge_bench.study.grid import parse_grid


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("results", "results"),
        ("results/local", "results/local"),
        ("/data/results/local", "results/local"),  # committed: nothing of the machine
        ("out/mine", "out/mine"),
        ("../mine", "../mine"),
        ("/data/mine", "/data/mine"),
        ("my räume", "'my räume'"),  # as a shell takes it
    ],
)
def test_a_caption_names_the_folder_as_a_command_takes_it(given, named):
    assert results_folder(Path(given) / "studies/gain") == named


def test_a_folder_below_the_working_one_is_named_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results_folder(tmp_path / "out/mine/studies/gain") == "out/mine"


def test_what_tells_of_the_training_has_no_split_and_stands_once(tmp_path):
    """The dose is measured in training: the record has the same number with every split."""
    text = ROWS.replace("top1_accuracy,", "top1_accuracy, dose, load_entropy,")
    text += "  splits: [test, validation]\n"
    study = parse_grid(text, "x").file
    shown = [(metric.title_on(split), split) for metric, split in figures(study)]
    assert shown[2:5] == [
        ("dose", "test"), ("test load entropy", "test"), ("validation load entropy", "validation"),
    ]  # fmt: skip
