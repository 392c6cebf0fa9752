"""Text to token ids: byte-level BPE, raw bytes, or whole words as WikiText's baselines use.

A tokenizer ends every document with one separator; a stream of documents starts with one too, so
that every token of the text, the first included, has something to be predicted from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path

import torch

SEPARATOR = "<|endoftext|>"


class Tokenizer(ABC):
    """Maps text to ids 0 .. vocabulary_size - 1, the separator among them."""

    vocabulary_size: int
    separator: int

    @abstractmethod
    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the ids of every document, without separators."""

    def stream(self, documents: list[str]) -> torch.Tensor:
        """Return separator, document, separator, document, ..., separator: (n,) int64."""
        ids = [self.separator]
        for document in self.encode(documents):
            ids += [*document, self.separator]
        return torch.tensor(ids, dtype=torch.int64)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes, and 256 for the separator."""

    vocabulary_size = 257
    separator = 256

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the bytes of every document."""
        return [list(document.encode("utf-8")) for document in documents]


class WordTokenizer(Tokenizer):
    """White-space words of the training split, the most frequent first; lines end in <eos>.

    As the SMoE baselines read WikiText (wiki.{train,valid,test}.tokens). A word outside the
    vocabulary becomes <unk>. Of equally frequent words the one that comes first in the text wins.
    """

    def __init__(self, training: list[str], vocabulary_size: int) -> None:
        counts = Counter(word for text in training for word in self._words(text))
        for special in ("<unk>", "<eos>"):
            counts.pop(special, None)
        words = [word for word, _ in counts.most_common(vocabulary_size - 3)]
        self._ids = {word: i for i, word in enumerate([SEPARATOR, "<unk>", "<eos>", *words])}
        self.vocabulary_size = len(self._ids)
        self.separator = 0

    @staticmethod
    def _words(text: str) -> list[str]:
        return [word for line in text.splitlines() for word in [*line.split(), "<eos>"]]

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the word ids of every document."""
        unknown = self._ids["<unk>"]
        return [[self._ids.get(word, unknown) for word in self._words(d)] for d in documents]


class BPETokenizer(Tokenizer):
    """Byte-level BPE trained on the training split by ``tokenizers``; deterministic, cached."""

    def __init__(self, training: list[str], vocabulary_size: int) -> None:
        from tokenizers import Tokenizer as Backend

        path = _cache_folder() / f"bpe-{_digest(training, vocabulary_size)}.json"
        if path.is_file():
            self._backend = Backend.from_file(str(path))
        else:
            self._backend = _train_bpe(training, vocabulary_size)
            with contextlib.suppress(OSError):  # a cache: without it the next run trains again
                _save_atomically(path, self._backend.to_str())
        found = self._backend.get_vocab_size()
        if found < vocabulary_size:
            raise ValueError(
                f"vocabulary_size={vocabulary_size} is more than this corpus allows; it makes "
                f"only {found} tokens: set data.vocabulary_size to at most {found}"
            )
        self.vocabulary_size = found
        self.separator = self._backend.encode(SEPARATOR).ids[0]

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the token ids of every document."""
        return [encoding.ids for encoding in self._backend.encode_batch(documents)]


def make_tokenizer(kind: str, training: list[str], vocabulary_size: int) -> Tokenizer:
    """Return the tokenizer ``kind`` ("bpe", "bytes" or "words") fit to the training split."""
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "words":
        return WordTokenizer(training, vocabulary_size)
    if kind == "bpe":
        return BPETokenizer(training, vocabulary_size)
    raise ValueError(f"tokenizer must be one of ('bpe', 'bytes', 'words'), got {kind!r}")


def _train_bpe(training: list[str], vocabulary_size: int):  # type: ignore[no-untyped-def]
    from tokenizers import ByteLevelBPETokenizer

    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        training, vocabulary_size, show_progress=False, special_tokens=[SEPARATOR]
    )
    return trainer._tokenizer


def _digest(training: list[str], vocabulary_size: int) -> str:
    digest = hashlib.sha256(f"{vocabulary_size}".encode())
    for text in training:
        digest.update(b"\0" + text.encode("utf-8"))
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "moge-bench"


def _save_atomically(path: Path, text: str) -> None:
    """Two cells may train the same tokenizer at once: the last rename wins, both are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    os.replace(file.name, path)
