import json

import pytest

from moge_bench.data.text import load_corpus, swap_words


def write_splits(folder, suffix="txt", **texts):
    for name in ("train", "valid", "test"):
        (folder / f"{name}.{suffix}").write_text(texts.get(name, f"the {name} text"))


def test_addresses_are_split_by_the_last_digit_of_the_year():
    corpus = load_corpus("state-of-the-union")
    assert {split: len(documents) for split, documents in corpus.items()} == {
        "training": 187,
        "validation": 23,
        "test": 23,
    }
    documents = [text for split in corpus.values() for text in split]
    assert len(set(documents)) == 233


def test_local_folder_of_text(tmp_path):
    write_splits(tmp_path)
    assert load_corpus(str(tmp_path)) == {
        "training": ["the train text"],
        "validation": ["the valid text"],
        "test": ["the test text"],
    }


def test_local_wikitext_release(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"wiki.{name}.tokens").write_text(" = Title = \n a <unk> b \n")
    assert load_corpus(str(tmp_path))["test"] == [" = Title = \n a <unk> b \n"]


def test_local_json_lines_and_parquet(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    write_splits(tmp_path, "jsonl", train=json.dumps({"text": "a"}) + "\n\n" + '{"text": "b"}',
                 valid='{"text": "c"}', test='{"text": "d"}')  # fmt: skip
    assert load_corpus(str(tmp_path))["training"] == ["a", "b"]
    (tmp_path / "train.jsonl").unlink()
    pd.DataFrame({"text": ["x", "y"]}).to_parquet(tmp_path / "train.parquet")
    assert load_corpus(str(tmp_path))["training"] == ["x", "y"]


def test_missing_split_names_what_would_do(tmp_path):
    with pytest.raises(
        ValueError, match=r"no training split; it needs one of: wiki\.train\.tokens"
    ):
        load_corpus(str(tmp_path))


def test_file_that_is_not_utf8(tmp_path):
    write_splits(tmp_path)
    (tmp_path / "valid.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"valid\.txt is not UTF-8: byte 0xe9 at 3"):
        load_corpus(str(tmp_path))


def test_empty_text(tmp_path):
    write_splits(tmp_path, test="  \n")
    with pytest.raises(ValueError, match="has no text in its test split"):
        load_corpus(str(tmp_path))


def test_unknown_name():
    with pytest.raises(ValueError, match="'wikitext-104'; the nearest is 'wikitext-103'"):
        load_corpus("wikitext-104")


def test_hub_corpus_offline_says_where_to_put_the_files(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"offline, put wiki\.train\.tokens.*into a folder"):
        load_corpus("wikitext-103")


def test_swap_replaces_the_share_asked_for_and_keeps_spacing():
    text = "one  two\nthree four five six seven eight nine ten "
    swapped = swap_words(text, 0.3, seed=1)
    # round(0.3 * 10) = 3 words.
    assert swapped.split().count("AAA") == 3
    restored = [
        new if new != "AAA" else old for old, new in zip(text.split(), swapped.split(), strict=True)
    ]
    assert restored == text.split()
    assert [c for c in swapped if c.isspace()] == [c for c in text if c.isspace()]


def test_swap_limits_and_seed():
    text = " ".join(map(str, range(100)))
    assert swap_words(text, 0.0, seed=0) == text
    assert set(swap_words(text, 1.0, seed=0).split()) == {"AAA"}
    assert swap_words(text, 0.5, seed=0) == swap_words(text, 0.5, seed=0)
    assert swap_words(text, 0.5, seed=0) != swap_words(text, 0.5, seed=1)
    assert swap_words("", 0.5, seed=0) == ""
    with pytest.raises(ValueError, match=r"share must be from 0 to 1, got 1\.5"):
        swap_words(text, 1.5, seed=0)
