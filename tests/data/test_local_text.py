"""The reader of local text: what each kind of file holds, and one sentence for what it cannot."""

import bz2
import csv
import gzip
import json
import lzma

import pytest

from moge_bench.data.local_text import base_name, read_documents

LINES = b'{"text": "a"}\n\n{"text": "b"}\n'
UTF16_MARK = b"\xff\xfe"


def read(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return read_documents(path)


@pytest.mark.parametrize(
    ("name", "data", "documents"),
    [
        ("enwik8", b"a\r\nb\x0c\xe2\x80\xa8c\n", ["a\r\nb\x0c\u2028c\n"]),  # byte for byte
        ("A.TXT", b"a", ["a"]),
        ("wiki.train.tokens", b" = A = \n", [" = A = \n"]),
        ("wiki.train.raw", b"a", ["a"]),
        ("a.jsonl", LINES, ["a", "b"]),
        ("A.JSONL", LINES, ["a", "b"]),
        ("a.ndjson", LINES.replace(b"\n", b"\r\n"), ["a", "b"]),
        ("a.json", LINES, ["a", "b"]),
        ("a.json", b'[{"text": "a"},\n {"text": "b"}]', ["a", "b"]),
        ("a.json", b'{\n "text": "a"\n}', ["a"]),
        ("a.csv", b'id,text\n1,"a\nb, ""c"""\n\n2,NA\n', ['a\nb, "c"', "NA"]),
        ("a.TSV", b"text\tid\na\t1\n", ["a"]),
        ("a.txt.gz", gzip.compress(b"a", mtime=0), ["a"]),
        ("a.txt.bz2", bz2.compress(b"a"), ["a"]),
        ("a.jsonl.XZ", lzma.compress(LINES), ["a", "b"]),
        ("a.txt", gzip.compress(b"a", mtime=0), ["a"]),  # told by its bytes
    ],
)
def test_a_file_is_read_as_what_it_is(tmp_path, name, data, documents):
    assert read(tmp_path, name, data) == documents


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"\xef\xbb\xbf" + "é".encode()),
        ("a.txt", "é".encode("utf-16")),
        ("a.txt", b"\xfe\xff" + "é".encode("utf-16-be")),
        ("a.txt", "é".encode("utf-32")),
        ("a.jsonl", b"\xef\xbb\xbf" + '{"text": "é"}'.encode()),
        ("a.csv", b"\xef\xbb\xbf" + "text\né\n".encode()),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, data):
    assert read(tmp_path, name, data) == ["é"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8: byte 0xe9 at 3; convert it"),
        ("a.txt", UTF16_MARK + b"abc", r"mark says \(utf-16\): byte 0x63 at 4"),
        ("a.txt", "ab".encode("utf-16-le"), r"a\.txt holds a null character at 1: it is UTF-16 w"),
        ("a.pdf", b"%PDF", r"a\.pdf ends in '\.pdf', which is none of \.txt, .*name plain text"),
        ("a.zip", b"PK\x03\x04", r"a\.zip is compressed \(\.zip\): unpack it first"),
        ("text8", b"PK\x03\x04", r"text8 is compressed \(\.zip\): unpack it first"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd", r"is compressed \(\.zst\): unpack it first"),
        ("a.txt.gz", b"plain", r"a\.txt\.gz ends in \.gz and does not hold such data"),
        ("a.txt.gz", gzip.compress(b"a" * 99, mtime=0)[:-9], r"a\.txt\.gz is damaged \.gz data"),
        ("a.txt.xz", lzma.compress(b"a" * 99)[:-9], r"a\.txt\.xz is damaged \.xz data"),
        ("a.txt", b"PAR1", r"a\.txt holds parquet: name it a\.txt\.parquet"),
        ("a.jsonl", LINES + b'{"text": "\\ud83d"}', r"line 4: character 0 .*surrogate, U\+D83D"),
        ("a.jsonl", LINES + b'{"text": null}', r"line 4 must be an object whose 'text' is a str"),
        ("a.jsonl", LINES + b'{"text": ' + b"9" * 5000 + b"}", r"line 4 is not JSON: Exceeds"),
        ("a.jsonl", b"[" * 100_000, r"line 1 is not JSON: maximum recursion"),
        ("a.json", LINES + b"{", r"a\.json, line 4 is not JSON"),
        ("a.json", b'[{"text": "a"}, {"text": 3}]', r"a\.json, entry 2 must be an object whose"),
        ("a.csv", b"id,words\n1,a\n", r"a\.csv needs a column 'text', got \['id', 'words'\]"),
        ("a.csv", b"", r"a\.csv needs a column 'text', got \[\]"),
        ("a.csv", b"id,text\n1,a\n2,b,c\n", r"a\.csv, line 3 has 3 fields, the header 2"),
        ("a.csv", b'text\n"a" b\n', r"a\.csv, line 2 cannot be read: ',' expected after"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_place(tmp_path, name, data, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, name, data)


def test_a_long_field_is_read_and_the_limit_of_the_process_kept(tmp_path):
    limit = csv.field_size_limit()
    assert read(tmp_path, "a.csv", b"text\n" + b"a" * 200_000 + b"\n") == ["a" * 200_000]
    with pytest.raises(ValueError, match="line 2 has 2 fields"):
        read(tmp_path, "a.csv", b"text\na,b\n")
    assert csv.field_size_limit() == limit


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(ValueError, match=r"a\.txt cannot be read: Is a directory"):
        read_documents(tmp_path / "a.txt")


def test_base_name_leaves_suffixes_and_compression_aside(tmp_path):
    assert base_name(tmp_path / "WIKI.Train.tokens.GZ") == ("wiki.train", ".tokens")
    assert base_name(tmp_path / "train") == ("train", "")
    assert base_name(tmp_path / "train.pdf") is None


class TestParquet:
    @pytest.fixture
    def write(self, tmp_path):
        pa = pytest.importorskip("pyarrow", reason="the extra `dev` is not installed")
        import pyarrow.parquet as pq

        def write(values, kind=None, name="text"):
            column = pa.array(values, kind and getattr(pa, kind)())
            pq.write_table(pa.table({name: column}), tmp_path / "a.parquet")
            return tmp_path / "a.parquet"

        return write

    def test_strings_of_any_kind(self, write):
        for kind in ("string", "large_string"):
            assert read_documents(write(["x", "é\n"], kind)) == ["x", "é\n"]
        import pyarrow as pa

        assert read_documents(write(pa.array(["x", "y", "x"]).dictionary_encode())) == list("xyx")

    @pytest.mark.parametrize(
        ("values", "kind", "message"),
        [
            (["a", None, "b"], None, r"a\.parquet, row 2: 'text' must be a string, got null"),
            ([b"caf\xc3\xa9"], None, r"a\.parquet needs a column 'text' of strings, got binary"),
            ([["a"], ["b"]], None, r"needs a column 'text' of strings, got list<"),
            ([None, None], None, r"needs a column 'text' of strings, got null"),
            ([1.5], None, r"needs a column 'text' of strings, got double"),
        ],
    )
    def test_other_columns_and_nulls_are_named(self, write, values, kind, message):
        with pytest.raises(ValueError, match=message):
            read_documents(write(values, kind))

    def test_bytes_that_are_no_text_are_named_by_row(self, write):
        import pyarrow as pa

        damaged = pa.array([b"a", b"caf\xe9"]).view(pa.string())  # as a careless writer does
        with pytest.raises(ValueError, match=r"a\.parquet, row 2 is not UTF-8: .* at 3"):
            read_documents(write(damaged))

    def test_missing_column_and_no_parquet(self, write):
        path = write(["x"], name="texts")
        with pytest.raises(ValueError, match=r"needs a column 'text', got \['texts'\]"):
            read_documents(path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet"):
            read_documents(path)


def test_json_text_may_hold_any_character_that_utf8_holds(tmp_path):
    text = "a\u2028b\x0c\x00\U0001f600"
    assert read(tmp_path, "a.jsonl", json.dumps({"text": text}).encode()) == [text]
