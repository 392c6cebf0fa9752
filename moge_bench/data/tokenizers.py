"""Text to token ids: byte-level BPE, raw bytes, or whole words as WikiText's baselines use.

A tokenizer ends every document with one separator; a stream of documents starts with one too, so
that every token of the text, the first included, has something to be predicted from. Separators
stand between documents only: "<|endoftext|>" within a text is text like any other.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator

import torch

from moge_bench import cache
from moge_bench.config.identity import digest_of

SEPARATOR = "<|endoftext|>"


class Tokenizer(ABC):
    """Maps text to ids 0 .. vocabulary_size - 1, the separator among them.

    ``lossless``: the text can be made again from its ids, so that its bytes can be counted.
    """

    vocabulary_size: int
    separator: int
    lossless: bool = True

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
    """White-space words of the training split, the most frequent first; lines end in an id.

    As the SMoE baselines read WikiText (wiki.{train,valid,test}.tokens). A word outside the
    vocabulary becomes 1, and so does the word "<unk>", which WikiText holds in the place of rare
    words; no other word has a meaning of its own. Of equally frequent words the one that comes
    first in the text wins (``tokenizers``' WordLevel orders those by their letters, and would
    read "<eos>" in a text as the end of a line).
    """

    separator, _UNKNOWN, _END_OF_LINE, _NUM_SPECIAL = 0, 1, 2, 3
    lossless = False  # spacing and rare words are gone

    def __init__(self, training: list[str], vocabulary_size: int) -> None:
        counts = Counter(word for text in training for line in _lines(text) for word in line)
        del counts["<unk>"]
        words = counts.most_common(vocabulary_size - self._NUM_SPECIAL)
        self._ids = {word: i for i, (word, _) in enumerate(words, start=self._NUM_SPECIAL)}
        self.vocabulary_size = self._NUM_SPECIAL + len(self._ids)

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the word ids of every document."""
        return [
            [i for line in _lines(document) for i in self._encode_line(line)]
            for document in documents
        ]

    def _encode_line(self, words: list[str]) -> list[int]:
        return [*(self._ids.get(word, self._UNKNOWN) for word in words), self._END_OF_LINE]


def _lines(text: str) -> Iterator[list[str]]:
    """Yield the words of every line, where a file's lines end: not at U+2028 or a form feed."""
    for line in io.StringIO(text, newline=None):
        yield line.split()


class BPETokenizer(Tokenizer):
    """Byte-level BPE trained on the training split by ``tokenizers``; deterministic, cached."""

    def __init__(self, training: list[str], vocabulary_size: int) -> None:
        import tokenizers

        name = f"bpe-{digest_of([tokenizers.__version__, vocabulary_size, training])}.json"
        kept = cache.kept_text(name, lambda: _train_bpe(training, vocabulary_size).to_str())
        self._backend = tokenizers.Tokenizer.from_str(kept)
        self._backend.encode_special_tokens = True  # as the text that they are in a document
        found = self._backend.get_vocab_size()
        if found < vocabulary_size:
            raise ValueError(
                f"vocabulary_size={vocabulary_size} is more than this corpus allows; it makes "
                f"only {found} tokens: set data.vocabulary_size to at most {found}"
            )
        self.vocabulary_size = found
        separator = self._backend.token_to_id(SEPARATOR)
        assert separator is not None  # _train_bpe puts it in
        self.separator = separator

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
