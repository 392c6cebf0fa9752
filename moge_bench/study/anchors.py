"""What simple models reach on the data of the tiny presets: the least that a study must beat.

Logistic regression on pixels (scikit-learn), and an interpolated Kneser-Ney n-gram (Kneser and Ney
1995; the interpolated form of Chen and Goodman 1998, section 3, with one discount an order).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]


@dataclass(frozen=True)
class _Order:
    """Counts of the m-grams of one order, and of their contexts, sorted by key."""

    grams: Keys
    counts: Keys
    contexts: Keys
    totals: Keys
    types: Keys
    discount: float


class KneserNey:
    """P(w | the order - 1 tokens before it), interpolated with all lower orders down to 1 / V.

    Args:
        tokens: (n,) ids of the training stream, n > order.
        vocabulary_size: V; every id is below it.
        order: length of the longest n-gram, at least 2.

    Raises ValueError where V^order does not fit 63 bits.
    """

    def __init__(self, tokens: Keys, vocabulary_size: int, order: int = 5) -> None:
        self.bits = max(math.ceil(math.log2(vocabulary_size)), 1)
        if order < 2 or self.bits * order > 63:
            raise ValueError(
                f"order must be at least 2 and order * {self.bits} bits of a token at most 63, "
                f"got order={order}"
            )
        self.vocabulary_size = vocabulary_size
        grams, counts = np.unique(self._keys(tokens, order), return_counts=True)
        orders = [self._of(grams, counts)]
        for m in range(order - 1, 0, -1):
            # Below the top a gram counts as often as different tokens come before it.
            suffixes = orders[0].grams & ((1 << (m * self.bits)) - 1)
            orders.insert(0, self._of(*np.unique(suffixes, return_counts=True)))
        self._orders = orders

    def _keys(self, tokens: Keys, length: int) -> Keys:
        """Return the n-grams of ``length`` that end at each position, as numbers."""
        keys = np.zeros(len(tokens) - length + 1, dtype=np.int64)
        for offset in range(length):
            keys = (keys << self.bits) | tokens[offset : len(tokens) - length + 1 + offset]
        return keys

    def _of(self, grams: Keys, counts: Keys) -> _Order:
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        contexts, first = np.unique(grams >> self.bits, return_index=True)
        totals = np.add.reduceat(counts, first)
        types = np.diff(np.append(first, len(grams)))
        return _Order(grams, counts, contexts, totals, types, discount)

    def probabilities(self, tokens: Keys) -> NDArray[np.float64]:
        """Return P of tokens[1:], each given what comes before it in the stream, (n - 1,)."""
        p = np.full(len(tokens), 1 / self.vocabulary_size)
        for length, order in enumerate(self._orders, 1):
            keys = self._keys(tokens, length)
            count = _look_up(order.grams, order.counts, keys)
            total = _look_up(order.contexts, order.totals, keys >> self.bits)
            types = _look_up(order.contexts, order.types, keys >> self.bits)
            seen = total > 0
            share = np.maximum(count - order.discount, 0) / np.maximum(total, 1)
            rest = order.discount * types / np.maximum(total, 1)
            lower = p[length - 1 :]
            p[length - 1 :] = np.where(seen, share + rest * lower, lower)
        return p[1:]

    def cross_entropy(self, tokens: Keys) -> float:
        """Return the mean of -log P over tokens[1:], in nats."""
        return float(-np.log(self.probabilities(tokens)).mean())


def _look_up(sorted_keys: Keys, values: Keys, keys: Keys) -> Keys:
    """Return the value of each key, 0 for one that is not there."""
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[place] == keys, values[place], 0)


def text_anchor(name: str, vocabulary_size: int = 2048, order: int = 5) -> dict[str, float]:
    """Return the perplexity per BPE token of a Kneser-Ney n-gram, by split.

    Tokenizer, splits and scored tokens are those of a run with ``data.tokenizer: bpe``.
    """
    from moge_bench.data.text import load_corpus
    from moge_bench.data.tokenizers import make_tokenizer

    corpus = load_corpus(name)
    tokenizer = make_tokenizer("bpe", corpus["training"], vocabulary_size)
    streams = {split: tokenizer.stream(documents).numpy() for split, documents in corpus.items()}
    model = KneserNey(streams["training"], tokenizer.vocabulary_size, order)
    return {
        split: math.exp(model.cross_entropy(streams[split])) for split in ("validation", "test")
    }


def image_anchor(name: str, strengths: tuple[float, ...] = (0.003, 0.01, 0.03)) -> dict[str, float]:
    """Return the top-1 accuracy of logistic regression on pixels, in percent, by split.

    The inverse strength C of its L2 penalty is the one of ``strengths`` that is best on validation.
    """
    from sklearn.linear_model import LogisticRegression

    from moge_bench.data.images import ImageSplit, load_images

    def arrays(split: ImageSplit) -> tuple[np.ndarray, np.ndarray]:
        return split.images.flatten(1).numpy(), split.labels.numpy()

    splits = {split: arrays(data) for split, data in load_images(name).items()}
    fits = [LogisticRegression(C=c, max_iter=1000).fit(*splits["training"]) for c in strengths]
    best = max(fits, key=lambda fit: fit.score(*splits["validation"]))
    return {split: 100 * best.score(*splits[split]) for split in ("validation", "test")}
