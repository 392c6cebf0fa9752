import pytest

from moge_bench.data import tokenizers
from moge_bench.data.tokenizers import ByteTokenizer, WordTokenizer, make_tokenizer

TEXT = ["the cat sat on the mat and the dog sat on the cat " * 20, "a naïve café — 東京"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_bytes_round_trip_and_separators():
    tokenizer = ByteTokenizer()
    ids = tokenizer.stream(["ab", "é"]).tolist()
    # Separator, a, b, separator, the two bytes of é, separator.
    assert ids == [256, 97, 98, 256, 0xC3, 0xA9, 256]


def test_empty_documents_are_separators_alone():
    assert ByteTokenizer().stream([]).tolist() == [256]
    assert ByteTokenizer().stream(["", ""]).tolist() == [256, 256, 256]


def test_words_by_frequency_then_first_seen():
    tokenizer = WordTokenizer(["b a a\nc b a"], vocabulary_size=5)
    # Specials 0, 1, 2; then a (3 times), b (twice); c does not fit and is <unk> = 1.
    assert tokenizer.vocabulary_size == 5
    assert tokenizer.encode(["a b c"]) == [[3, 4, 1, 2]]


def test_lines_of_words_end_where_lines_of_a_file_end():
    tokenizer = WordTokenizer(["a"], vocabulary_size=10)
    # a is 3, the end of a line 2. Three lines, however they end; none ends at U+2028 or \f.
    assert tokenizer.encode(["a\na\r\na"]) == [[3, 2, 3, 2, 3, 2]]
    assert tokenizer.encode(["a\u2028a\x0ca\x85a"]) == [[3, 3, 3, 3, 2]]
    assert tokenizer.encode(["", "\n"]) == [[], [2]]


def test_special_words_in_a_text_are_words():
    text = "a <|endoftext|> <eos> a <|endoftext|> <unk>"
    tokenizer = WordTokenizer([text], vocabulary_size=10)
    # a 3, <|endoftext|> 4, <eos> 5; <unk> is WikiText's mark of a rare word, as any rare word is.
    assert tokenizer.encode([text]) == [[3, 4, 5, 3, 4, 1, 2]]
    assert tokenizer.stream([text]).tolist() == [0, 3, 4, 5, 3, 4, 1, 2, 0]
    assert tokenizer.vocabulary_size == 6


@pytest.mark.parametrize("kind", ["bpe", "bytes", "words"])
def test_only_documents_are_separated_and_every_id_is_in_the_vocabulary(kind):
    training = [*TEXT, f"{tokenizers.SEPARATOR} one {tokenizers.SEPARATOR} <unk> <eos> [PAD]"]
    for _ in range(2):  # trained, and from the cache
        tokenizer = make_tokenizer(kind, training, 280)
        ids = tokenizer.stream([f"x{tokenizers.SEPARATOR}y", tokenizers.SEPARATOR, *training])
        assert int((ids == tokenizer.separator).sum()) == 6  # five documents
        assert int(ids.min()) >= 0 and int(ids.max()) < tokenizer.vocabulary_size


def test_what_loses_text_says_so():
    lossless = {k: make_tokenizer(k, TEXT, 268).lossless for k in ("bpe", "bytes", "words")}
    assert lossless == {"bpe": True, "bytes": True, "words": False}


def test_bpe_round_trip_is_exact_for_any_text():
    tokenizer = make_tokenizer("bpe", TEXT, 268)
    assert tokenizer.vocabulary_size == 268
    for text in [*TEXT, "never seen: Ωmega\n\ttabs", "a<|endoftext|>b <unk>"]:
        assert tokenizer._backend.decode(tokenizer.encode([text])[0]) == text


def test_bpe_is_deterministic_and_cached(cache, monkeypatch):
    first = make_tokenizer("bpe", TEXT, 264).encode(TEXT)
    assert len(list((cache / "moge-bench").glob("bpe-*.json"))) == 1
    monkeypatch.setattr(tokenizers, "_train_bpe", None)  # a second training would raise
    assert make_tokenizer("bpe", TEXT, 264).encode(TEXT) == first


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"text": "{}", "sha256": ""}', "\xff"])
def test_a_damaged_cache_is_made_again(cache, damage):
    first = make_tokenizer("bpe", TEXT, 264).encode(TEXT)
    (path,) = (cache / "moge-bench").glob("bpe-*.json")
    whole = path.read_bytes()
    path.write_bytes(damage.encode("latin-1"))
    assert make_tokenizer("bpe", TEXT, 264).encode(TEXT) == first
    assert path.read_bytes() == whole


def test_bpe_of_other_text_is_another_file(cache):
    make_tokenizer("bpe", TEXT, 264)
    make_tokenizer("bpe", TEXT[:1], 264)
    assert len(list((cache / "moge-bench").glob("bpe-*.json"))) == 2


def test_vocabulary_larger_than_the_corpus_allows():
    with pytest.raises(ValueError, match="vocabulary_size=5000 is more than this corpus allows"):
        make_tokenizer("bpe", ["abab"], 5000)


def test_unknown_tokenizer():
    with pytest.raises(ValueError, match=r"tokenizer must be one of .*got 'char'"):
        make_tokenizer("char", TEXT, 300)
