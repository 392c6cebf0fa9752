"""Text corpora as documents, split into training, validation and test.

Shipped: the State of the Union addresses. Others come through ``datasets``, from the hub or from
a local copy: WikiText-2/103, enwik8, text8. Any folder or file that ``local_text`` reads.
"""

from __future__ import annotations

import itertools
import json
import lzma
import os
import random
import re
from pathlib import Path

from moge_bench.config import nearest
from moge_bench.data.assets import ASSETS
from moge_bench.data.local_text import base_name, read_documents

SPLITS = ("training", "validation", "test")
Corpus = dict[str, list[str]]

SHIPPED = "state-of-the-union"
# Hub name and configuration.
_HUB = {
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-v1"),
    "enwik8": ("LTCB/enwik8", "enwik8"),
    "text8": ("afmck/text8", None),
}
# What the file of a split is called, in any case, before its suffix.
_STEMS = {
    "training": ("wiki.train", "train"),
    "validation": ("wiki.valid", "valid", "validation"),
    "test": ("wiki.test", "test"),
}


def load_corpus(name: str) -> Corpus:
    """Return {"training", "validation", "test"}: lists of documents of the corpus ``name``.

    ``name`` is "state-of-the-union", one of the hub's corpora above, the path of a folder with a
    file per split (``wiki.train.tokens``, ``train.txt``, ``train.jsonl.gz``, ..., and ``valid``,
    ``test`` alike), or the path of one file, of which the first 90 % of the bytes are the training
    split, the next 5 % validation, the rest test (as is usual for enwik8, text8). ``~`` is the
    home folder. Raises ValueError for an unknown name, a file that is missing, cannot be read as
    what it is (``local_text.read_documents``), or has no text, and says where to put what is
    absent.
    """
    check_name(name)
    path = local_path(name)
    if name == SHIPPED:
        corpus = _load_addresses()
    elif name in _HUB:
        corpus = _load_hub(name)
    elif path.is_file():
        corpus = _split_90_5_5("\n".join(read_documents(path)))
    else:
        files = zip(SPLITS, corpus_files(path), strict=True)
        corpus = {split: read_documents(file) for split, file in files}
    for split, documents in corpus.items():
        if not any(document.strip() for document in documents):
            raise ValueError(f"corpus {name!r} has no text in its {split} split")
    return corpus


def is_known(name: str) -> bool:
    """Return whether ``name`` is a corpus that is known by name, not a path."""
    return name == SHIPPED or name in _HUB


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a known corpus or an existing file or folder."""
    known = [SHIPPED, *_HUB]
    path = local_path(name)
    # os.path.exists: False, not an error, for a name that is too long or a folder that is closed
    if name not in known and not os.path.exists(path):
        hint = f" ({path.absolute()})" if os.sep in name else nearest(name, known)
        raise ValueError(f"no corpus, file or folder is called {name!r}{hint}")


def local_path(name: str) -> Path:
    """Return the path that ``name`` is, ``~`` expanded; ValueError where it cannot be."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # no home folder is known, or ~name is nobody
        raise ValueError(f"the path {name!r} cannot be expanded: {error}") from None


def corpus_files(path: Path) -> list[Path]:
    """Return the files that ``load_corpus`` reads of the local corpus at ``path``.

    ValueError where a folder does not have exactly one file a split.
    """
    return [path] if path.is_file() else [_find_split(path, split) for split in SPLITS]


def _load_addresses() -> Corpus:
    """Split by the last digit of the year: 8 validation, 9 test, the rest training."""
    corpus: Corpus = {split: [] for split in SPLITS}
    with lzma.open(ASSETS[SHIPPED].check(), "rt", encoding="utf-8") as lines:
        for line in lines:
            address = json.loads(line)
            split = {8: "validation", 9: "test"}.get(address["year"] % 10, "training")
            corpus[split].append(address["text"])
    return corpus


def _find_split(folder: Path, split: str) -> Path:
    """Return the one file of ``folder`` that is called as the split."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be read: {error.strerror}") from None
    names = [(path, base_name(path)) for path in files]
    found = [path for path, name in names if name is not None and name[0] in _STEMS[split]]
    if not found:
        wanted = ", ".join(f"{stem}.txt" for stem in _STEMS[split])
        raise ValueError(
            f"folder {folder} has no {split} split; it needs one of: {_STEMS[split][0]}.tokens, "
            f"{wanted} (or .jsonl, .json, .csv, .tsv, .parquet; also with .gz, .bz2, .xz after it)"
        )
    if len(found) > 1:
        raise ValueError(
            f"folder {folder} has more than one {split} split: "
            f"{', '.join(path.name for path in found)}; keep one"
        )
    return found[0]


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
            f"offline, put {', '.join(f'{stems[0]}.tokens' for stems in _STEMS.values())} (or "
            ".txt, .jsonl, .parquet files named train, valid, test) into a folder and give its "
            "path, or that of the unpacked enwik8 or text8 file, as data.name"
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
