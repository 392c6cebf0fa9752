"""The digest of local data: of what is read, and of nothing else."""

import pytest

from moge_bench.data.registry import _digest, find_data
from moge_bench.presets import resolve

SPLITS = {"train.txt": "a b c", "valid.txt": "d e", "test.txt": "f"}


@pytest.fixture
def folder(tmp_path):
    for name, text in SPLITS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run_id(folder):
    _digest.cache_clear()  # an edit within one tick of the file system's clock
    return find_data(resolve("tiny-lm", "moe", {"data.name": str(folder)})).run_id


def test_what_lies_beside_a_corpus_makes_no_other_run(folder):
    before = run_id(folder)
    (folder / "README.md").write_text("Where it comes from.")
    (folder / "train.bak").mkdir()
    (folder / "train.bak" / "train.txt").write_text("an older one")
    assert run_id(folder) == before
    (folder / "README.md").write_text("Where it came from.")
    assert run_id(folder) == before


@pytest.mark.parametrize("name", SPLITS)
def test_an_edited_split_makes_another_run(folder, name):
    before = run_id(folder)
    (folder / name).write_text(SPLITS[name] + " more")
    assert run_id(folder) != before
    (folder / name).write_text(SPLITS[name])
    assert run_id(folder) == before


def test_one_file_is_its_own_corpus(folder):
    before = run_id(folder / "train.txt")
    (folder / "valid.txt").write_text("other words")
    assert run_id(folder / "train.txt") == before
    (folder / "train.txt").write_text("other words")
    assert run_id(folder / "train.txt") != before


def test_a_folder_without_a_split_is_named_before_anything_is_trained(folder):
    (folder / "valid.txt").unlink()
    with pytest.raises(ValueError, match=r"has no validation split; it needs one of"):
        run_id(folder)
