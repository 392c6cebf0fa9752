import gzip
import json
import sys
import types

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


def test_local_json_lines(tmp_path):
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("a\u2028b", "c")]
    write_splits(tmp_path, "jsonl", train="\n\n".join(lines), valid=lines[1], test=lines[1])
    assert load_corpus(str(tmp_path))["training"] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"test\.jsonl, line 2 is not JSON: Expecting value"),
        ('{"words": "a"}', r"line 2 must be an object whose 'text' is a string, got \{\"words\""),
        ('["a"]', r"line 2 must be an object whose 'text' is a string"),
    ],
)
def test_bad_json_lines_name_the_line(tmp_path, line, message):
    write_splits(tmp_path, "jsonl", **dict.fromkeys(("train", "valid", "test"), '{"text": "a"}'))
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write("\n" + line)
    with pytest.raises(ValueError, match=message):
        load_corpus(str(tmp_path))


def test_splits_are_found_in_any_case_and_compressed(tmp_path):
    (tmp_path / "TRAIN.TXT").write_text("a")
    (tmp_path / "validation.ndjson").write_text('{"text": "b"}')
    (tmp_path / "test.txt.gz").write_bytes(gzip.compress(b"c"))
    (tmp_path / "README.md").write_text("of no split")
    assert load_corpus(str(tmp_path)) == {"training": ["a"], "validation": ["b"], "test": ["c"]}


def test_two_files_of_one_split_are_not_chosen_from(tmp_path):
    write_splits(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a"}')
    with pytest.raises(ValueError, match=r"more than one training split: train\.jsonl, train\.txt"):
        load_corpus(str(tmp_path))


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    write_splits(tmp_path / "corpus")
    assert load_corpus("~/corpus")["test"] == ["the test text"]
    with pytest.raises(ValueError, match=rf"called '~/none' \({tmp_path}/none\)"):
        load_corpus("~/none")
    with pytest.raises(ValueError, match="'~nobody-by-this-name/x' cannot be expanded"):
        load_corpus("~nobody-by-this-name/x")


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "a\0b"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(ValueError, match="no corpus, file or folder is called"):
        load_corpus(name)


def test_one_file_is_cut_by_bytes_between_characters(tmp_path):
    path = tmp_path / "enwik8"
    path.write_bytes(b"a" * 89 + "é".encode() + b"b" * 9)
    # 100 bytes: 90 is within é (89 and 90), so the cut moves to 91; the next is at 95.
    assert load_corpus(str(path)) == {
        "training": ["a" * 89 + "é"], "validation": ["b" * 4], "test": ["b" * 5],
    }  # fmt: skip


def test_one_file_of_json_lines(tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 9}) + "\n" for _ in range(10)))
    # Ten texts of 9 and nine line breaks are 99 bytes: 89, 94 - 89 and 99 - 94.
    corpus = load_corpus(str(path))
    assert {split: len(text) for split, (text,) in corpus.items()} == {
        "training": 89, "validation": 5, "test": 5,
    }  # fmt: skip


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


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the package `datasets`: what ``load_dataset`` is asked for, and its answer."""
    package = types.ModuleType("datasets")
    package.asked, package.answer = [], {}

    def load_dataset(*names):
        package.asked.append(names)
        if isinstance(package.answer, Exception):
            raise package.answer
        return package.answer

    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)
    return package


def test_hub_corpus_with_its_splits(hub):
    hub.answer = {
        "train": {"text": ["a\n", "b\n"]},
        "validation": {"text": ["c\n"]},
        "test": {"text": ["d\n"]},
    }  # fmt: skip
    assert load_corpus("wikitext-2") == {
        "training": ["a\nb\n"], "validation": ["c\n"], "test": ["d\n"],
    }  # fmt: skip
    assert hub.asked == [("Salesforce/wikitext", "wikitext-2-v1")]


def test_hub_corpus_that_comes_whole_is_split(hub):
    hub.answer = {"train": {"text": ["x" * 100]}}
    corpus = load_corpus("text8")
    assert [len(corpus[split][0]) for split in ("training", "validation", "test")] == [90, 5, 5]


def test_hub_corpus_offline_says_where_to_put_the_files(hub):
    hub.answer = ConnectionError("offline")
    with pytest.raises(ValueError, match=r"offline, put wiki\.train\.tokens.*into a folder"):
        load_corpus("wikitext-103")


def test_hub_corpus_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it raises
    with pytest.raises(ValueError, match=r"pip install datasets, or give the folder"):
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
