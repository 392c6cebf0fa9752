"""Text corpora as documents, split into training, validation and test.

Shipped: the State of the Union addresses. Others come through ``datasets``, from the hub or from
a local copy: WikiText-2/103, enwik8, text8. Any folder or file of text, JSON lines or parquet.
"""

from __future__ import annotations

import itertools
import json
import lzma
import random
import re
from pathlib import Path

from moge_bench.config import nearest
from moge_bench.data.assets import ASSETS

SPLITS = ("training", "validation", "test")
Corpus = dict[str, list[str]]

# Hub name, configuration, and the file names that a local copy of the original release has.
_HUB = {
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-v1"),
    "enwik8": ("LTCB/enwik8", "enwik8"),
    "text8": ("afmck/text8", None),
}
_LOCAL_NAMES = {
    "training": ("wiki.train.tokens", "train.txt", "train.jsonl", "train.parquet"),
    "validation": ("wiki.valid.tokens", "valid.txt", "valid.jsonl", "valid.parquet"),
    "test": ("wiki.test.tokens", "test.txt", "test.jsonl", "test.parquet"),
}


def load_corpus(name: str) -> Corpus:
    """Return {"training", "validation", "test"}: lists of documents of the corpus ``name``.

    ``name`` is "state-of-the-union", one of the hub's corpora above, the path of a folder with a
    file per split (``wiki.train.tokens``, ``train.txt``, ``train.jsonl`` or ``train.parquet``, and
    ``valid``, ``test`` alike), or the path of one file, of which the first 90 % of the bytes are
    the training split, the next 5 % validation, the rest test (as is usual for enwik8, text8).
    Raises ValueError for an unknown name, a file that is missing, is not UTF-8, cannot be read as
    what its suffix says, or has no text, and says where to put what is absent.
    """
    check_name(name)
    if name == "state-of-the-union":
        corpus = _load_addresses()
    elif name in _HUB:
        corpus = _load_hub(name)
    elif Path(name).is_file():
        corpus = _split_90_5_5("\n".join(_read_documents(Path(name))))
    else:
        corpus = {split: _read_documents(_find_split(Path(name), split)) for split in SPLITS}
    for split, documents in corpus.items():
        if not any(document.strip() for document in documents):
            raise ValueError(f"corpus {name!r} has no text in its {split} split")
    return corpus


def is_known(name: str) -> bool:
    """Return whether ``name`` is a corpus that is known by name, not a path."""
    return name == "state-of-the-union" or name in _HUB


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a known corpus or an existing file or folder."""
    known = ["state-of-the-union", *_HUB]
    if name not in known and not Path(name).exists():
        raise ValueError(f"no corpus, file or folder is called {name!r}{nearest(name, known)}")


def _load_addresses() -> Corpus:
    """Split by the last digit of the year: 8 validation, 9 test, the rest training."""
    corpus: Corpus = {split: [] for split in SPLITS}
    with lzma.open(ASSETS["state-of-the-union"].check(), "rt", encoding="utf-8") as lines:
        for line in lines:
            address = json.loads(line)
            split = {8: "validation", 9: "test"}.get(address["year"] % 10, "training")
            corpus[split].append(address["text"])
    return corpus


def _find_split(folder: Path, split: str) -> Path:
    candidates = [folder / name for name in _LOCAL_NAMES[split]]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        names = ", ".join(candidate.name for candidate in candidates)
        raise ValueError(f"folder {folder} has no {split} split; it needs one of: {names}")
    return path


def _read_documents(path: Path) -> list[str]:
    """Return the documents of a .parquet or .jsonl file (its "text"), or a file as one document."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}; "
            "convert it, e.g. with iconv -t UTF-8"
        ) from None
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        return [_document(line, f"{path}, line {n}") for n, line in lines if line.strip()]
    return [text]


def _read_parquet(path: Path) -> list[str]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow: pip install pyarrow") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    if "text" not in frame:
        raise ValueError(f"{path} needs a column 'text', got {list(frame.columns)}")
    return [str(text) for text in frame["text"]]


def _document(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where} must be an object whose 'text' is a string, got {line[:60]}")
    return text


def _load_hub(name: str) -> Corpus:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(
            f"corpus {name!r} comes through the package `datasets`: pip install datasets, or give "
            "the folder of a local copy instead"
        ) from None
    path, configuration = _HUB[name]
    try:
        loaded = datasets.load_dataset(path, configuration)
    except Exception as error:
        raise ValueError(
            f"corpus {name!r} could not be loaded from the hub ({type(error).__name__}: {error}); "
            f"offline, put {', '.join(names[0] for names in _LOCAL_NAMES.values())} (or .txt, "
            ".jsonl, .parquet files named train, valid, test) into a folder and give its path, or "
            "that of the unpacked enwik8 or text8 file, as data.name"
        ) from None
    corpus = {split: ["".join(loaded[hub]["text"])] for split, hub in _hub_splits(loaded).items()}
    return corpus if len(corpus) == len(SPLITS) else _split_90_5_5(corpus["training"][0])


def _hub_splits(loaded: object) -> dict[str, str]:
    names = {"training": "train", "validation": "validation", "test": "test"}
    return {split: hub for split, hub in names.items() if hub in loaded}  # type: ignore[operator]


def _split_90_5_5(text: str) -> Corpus:
    """Split a corpus that comes whole: 90 / 5 / 5 percent of its bytes, in order."""
    data = text.encode("utf-8")

    def cut(percent: int) -> int:
        position = len(data) * percent // 100
        while position < len(data) and data[position] & 0xC0 == 0x80:  # within a character
            position += 1
        return position

    edges = [0, cut(90), cut(95), len(data)]
    parts = [data[a:b].decode("utf-8") for a, b in itertools.pairwise(edges)]
    return {split: [part] for split, part in zip(SPLITS, parts, strict=True)}


def swap_words(text: str, share: float, seed: int, token: str = "AAA") -> str:
    """Return ``text`` with ``share`` of its words replaced by ``token``, spacing kept.

    The word-swap attack of MomentumSMoE (arXiv 2410.14574): round(share * words) words, chosen
    without replacement by ``seed``. ValueError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share!r}")
    words = list(re.finditer(r"\S+", text))
    chosen = set(random.Random(seed).sample(range(len(words)), round(share * len(words))))
    pieces, position = [], 0
    for index, word in enumerate(words):
        pieces += [text[position : word.start()], token if index in chosen else word.group()]
        position = word.end()
    return "".join([*pieces, text[position:]])
