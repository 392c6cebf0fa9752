"""Text corpora as documents, split into training, validation and test.

Shipped: the State of the Union addresses. Others come through ``datasets``, from the hub or from
a local copy: WikiText-2/103, enwik8, text8, or any folder or file of text, JSON lines or parquet.
"""

from __future__ import annotations

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

    ``name`` is "state-of-the-union", one of the hub's corpora above, or the path of a folder with
    a file per split (``wiki.train.tokens``, ``train.txt``, ``train.jsonl`` or ``train.parquet``,
    and ``valid``, ``test`` alike). Raises ValueError for an unknown name, a file that is missing,
    is not UTF-8 or has no text, and says where to put what is absent.
    """
    check_name(name)
    if name == "state-of-the-union":
        corpus = _load_addresses()
    elif name in _HUB:
        corpus = _load_hub(name)
    else:
        corpus = {split: _load_local(Path(name), split) for split in SPLITS}
    for split, documents in corpus.items():
        if not any(document.strip() for document in documents):
            raise ValueError(f"corpus {name!r} has no text in its {split} split")
    return corpus


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a known corpus or an existing folder."""
    known = ["state-of-the-union", *_HUB]
    if name not in known and not Path(name).is_dir():
        raise ValueError(f"no corpus and no folder is called {name!r}{nearest(name, known)}")


def _load_addresses() -> Corpus:
    """Split by the last digit of the year: 8 validation, 9 test, the rest training."""
    corpus: Corpus = {split: [] for split in SPLITS}
    with lzma.open(ASSETS["state-of-the-union"].check(), "rt", encoding="utf-8") as lines:
        for line in lines:
            address = json.loads(line)
            split = {8: "validation", 9: "test"}.get(address["year"] % 10, "training")
            corpus[split].append(address["text"])
    return corpus


def _load_local(folder: Path, split: str) -> list[str]:
    candidates = [folder / name for name in _LOCAL_NAMES[split]]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        names = ", ".join(candidate.name for candidate in candidates)
        raise ValueError(f"folder {folder} has no {split} split; it needs one of: {names}")
    if path.suffix == ".parquet":
        import pandas as pd

        frame = pd.read_parquet(path)
        if "text" not in frame:
            raise ValueError(f"{path} needs a column 'text', got {list(frame.columns)}")
        return [str(text) for text in frame["text"]]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}; "
            "convert it, e.g. with iconv -t UTF-8"
        ) from None
    if path.suffix == ".jsonl":
        return [json.loads(line)["text"] for line in text.splitlines() if line.strip()]
    return [text]


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
            ".jsonl, .parquet files named train, valid, test) into a folder and give its path as "
            "data.name"
        ) from None
    corpus = {split: ["".join(loaded[hub]["text"])] for split, hub in _hub_splits(loaded).items()}
    return corpus if len(corpus) == len(SPLITS) else _split_90_5_5(corpus["training"][0])


def _hub_splits(loaded: object) -> dict[str, str]:
    names = {"training": "train", "validation": "validation", "test": "test"}
    return {split: hub for split, hub in names.items() if hub in loaded}  # type: ignore[operator]


def _split_90_5_5(text: str) -> Corpus:
    """Split enwik8 and text8, which come whole, as is usual: 90 / 5 / 5 percent in order."""
    first, second = int(len(text) * 0.90), int(len(text) * 0.95)
    return {"training": [text[:first]], "validation": [text[first:second]], "test": [text[second:]]}


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
