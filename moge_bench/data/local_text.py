"""The one reader of local text: a file's bytes to documents, or one sentence that says why not.

A file is read as what its suffix says, in any case: text, JSON, JSON lines, CSV, TSV or parquet;
without a suffix (enwik8, text8) as text. gzip, bzip2 and xz are told by their first bytes and
read; other archives are named. Every error names the file, and the line or row where it has one.

Not the readers of the package ``datasets``: they copy every file into a cache folder, and their
errors name neither row nor line.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# First bytes of compressed files: those the standard library opens, and those it does not.
_OPENED: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    ".gz": (b"\x1f\x8b", gzip.decompress),
    ".bz2": (b"BZh", bz2.decompress),
    ".xz": (b"\xfd7zXZ\x00", lzma.decompress),
}
_NAMED = {
    ".zip": b"PK\x03\x04", ".zst": b"\x28\xb5\x2f\xfd", ".7z": b"7z\xbc\xaf\x27\x1c",
    ".rar": b"Rar!\x1a\x07", ".lz4": b"\x04\x22\x4d\x18",
}  # fmt: skip
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_PARQUET = b"PAR1"


def read_documents(path: Path) -> list[str]:
    """Return the documents of one local file.

    A text file is one document, byte for byte but for a byte order mark, which is dropped; UTF-16
    and UTF-32 are read where they have one. JSON is an array of objects with a "text", JSON lines
    one such object a line; CSV and TSV have a header with a column "text"; parquet has a column
    "text" of strings. Raises ValueError for anything else, naming file and line or row.
    """
    data, suffix = _decompress(path)
    if suffix != ".parquet" and data.startswith(_PARQUET):
        raise ValueError(f"{path} holds parquet: name it {path.name}.parquet")
    return list(_checked(_READERS[suffix](data, path)))


def base_name(path: Path) -> tuple[str, str] | None:
    """Return (stem, suffix) of ``path`` in lower case, compression aside.

    ("wiki.train", ".tokens") for WIKI.TRAIN.TOKENS.gz; None for a suffix that cannot be read.
    """
    name = path.name.lower()
    for compressed in _OPENED:
        name = name.removesuffix(compressed)
    stem, suffix = Path(name).stem, Path(name).suffix
    return (stem, suffix) if suffix in _READERS else None


def _decompress(path: Path) -> tuple[bytes, str]:
    """Return the file's content and the suffix that says what it is."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    outer = path.suffix.lower()
    for suffix, (magic, decompress) in _OPENED.items():
        if data.startswith(magic):
            try:
                data = decompress(data)
            except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
                raise ValueError(f"{path} is damaged {suffix} data: {error}") from None
            break
        if outer == suffix:
            raise ValueError(f"{path} ends in {outer} and does not hold such data")
    for suffix, magic in _NAMED.items():
        if data.startswith(magic) or outer == suffix:
            raise ValueError(f"{path} is compressed ({suffix}): unpack it first")
    found = base_name(path)
    if found is None:
        known = ", ".join(suffix for suffix in _READERS if suffix)
        raise ValueError(
            f"{path} ends in {path.suffix!r}, which is none of {known} (also with "
            f"{', '.join(_OPENED)} after it); name plain text .txt"
        )
    return data, found[1]


def _decode(data: bytes, path: Path) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        said = "" if encoding == "utf-8" else f" as its byte order mark says ({encoding})"
        raise ValueError(
            f"{path} is not UTF-8{said}: byte {error.object[error.start]:#04x} at {error.start}; "
            "convert it, e.g. with iconv -t UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{path} holds a null character at {text.index(chr(0))}: it is UTF-16 without a byte "
            "order mark, or no text; convert it, e.g. with iconv -f UTF-16LE -t UTF-8"
        )
    return text


# A document, and where it stands. A reader yields them in order.
_Found = Iterator[tuple[Any, str]]


def _checked(found: _Found) -> Iterator[str]:
    """Yield the texts; ValueError names the first that is none, or holds half a character."""
    for text, where in found:
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            raise ValueError(f"{where}: 'text' must be a string, got {kind}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(
                f"{where}: character {error.start} of 'text' is a lone surrogate, "
                f"U+{code:04X}: half of a pair, which no UTF-8 text can hold"
            ) from None
        yield text


def _text(data: bytes, path: Path) -> _Found:
    yield _decode(data, path), str(path)


def _json_lines(data: bytes, path: Path) -> _Found:
    for number, line in enumerate(_decode(data, path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits
                raise ValueError(f"{where} is not JSON: {error}") from None
            yield _field(value, where, line), where


def _json(data: bytes, path: Path) -> _Found:
    """An array of objects or one object; or JSON lines, which many corpora name .json."""
    text = _decode(data, path)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a whole value, and another after it
            yield from _json_lines(data, path)
            return
        raise ValueError(f"{path} is not JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    for number, value in enumerate(values if isinstance(values, list) else [values], start=1):
        where = f"{path}, entry {number}"
        yield _field(value, where, repr(value)), where


def _field(value: Any, where: str, shown: str) -> str:
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where} must be an object whose 'text' is a string, got {shown[:60]}")
    return text


def _separated(delimiter: str) -> Callable[[bytes, Path], _Found]:
    def read(data: bytes, path: Path) -> _Found:
        lines = io.StringIO(_decode(data, path), newline="")
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        limit = csv.field_size_limit(2**31 - 1)  # of the process, and 128 KiB by default
        try:
            return iter(list(_column(rows, path)))
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num} cannot be read: {error}") from None
        finally:
            csv.field_size_limit(limit)

    return read


def _column(rows: Any, path: Path) -> _Found:
    header: list[str] = next(rows, [])
    if header.count("text") != 1:
        raise ValueError(f"{path} needs a column 'text', got {header}")
    index = header.index("text")
    for row in filter(None, rows):  # a blank line is no row
        where = f"{path}, line {rows.line_num}"
        if len(row) != len(header):
            raise ValueError(f"{where} has {len(row)} fields, the header {len(header)}")
        yield row[index], where


def _parquet(data: bytes, path: Path) -> _Found:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow: pip install pyarrow") from None
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        table = file.read(columns=["text"])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    if names.count("text") != 1:
        raise ValueError(f"{path} needs a column 'text', got {names}")
    column = table.column("text")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{path} needs a column 'text' of strings, got {kind}")
    for number, value in enumerate(column, start=1):
        where = f"{path}, row {number}"
        try:
            yield value.as_py(), where
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8: {error.reason} at {error.start}") from None


_READERS: dict[str, Callable[[bytes, Path], _Found]] = {
    ".txt": _text, ".tokens": _text, ".raw": _text, "": _text,
    ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json,
    ".csv": _separated(","), ".tsv": _separated("\t"), ".parquet": _parquet,
}  # fmt: skip
