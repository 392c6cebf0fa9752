"""Perplexity of a language model on a whole stream of tokens, by a sliding window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moge_bench.training.kept import Kept


@dataclass(frozen=True)
class Score:
    """Sum of -log p over every predicted token of a stream, in nats."""

    total_nats: float
    num_tokens: int

    @property
    def cross_entropy(self) -> float:
        """Nats per token."""
        return self.total_nats / self.num_tokens

    @property
    def perplexity(self) -> float | None:
        """exp(nats per token), None above 1.8e308; a uniform model scores the vocabulary size."""
        try:
            return math.exp(self.cross_entropy)
        except OverflowError:
            return None

    def bits_per_byte(self, num_bytes: int) -> float:
        """Return the bits that a byte of the text costs, which no tokenizer changes.

        The cost of predicting the separators between documents is included.
        """
        return self.total_nats / math.log(2) / num_bytes


def windows(num_tokens: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, first) of windows over positions 0 .. num_tokens - 1.

    Window tokens[begin:end], at most ``length`` long, scores the positions from ``first`` on;
    together the windows score every position from 1 on exactly once, each with at least
    ``length - stride`` tokens before it where the stream has them. ValueError unless
    2 <= length and 1 <= stride <= length - 1.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, got {length}")
    if not 1 <= stride < length:
        raise ValueError(f"stride must be from 1 to length - 1 = {length - 1}, got {stride}")
    scored = 1
    for begin in range(0, num_tokens, stride):
        end = min(begin + length, num_tokens)
        if end > scored:
            yield begin, end, scored
            scored = end
        if end == num_tokens:
            return


def score_stream(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    tokens: torch.Tensor,
    *,
    length: int,
    stride: int,
    batch_size: int = 16,
    part: Callable[[int], slice] | None = None,
) -> Score:
    """Score tokens[1:], each once, given what comes before it in its window.

    Args:
        logits_of: maps ids (B, L) to logits (B, L, V), those at position i predicting token i+1.
        tokens: (n,) int64; the first is not predicted.
        length: tokens in a window, the last of which is predicted and not read.
        stride: distance between windows; a small one gives every token much context.
        batch_size: windows at a time; on a CPU 16 took a fifth less time than 32 (tiny-lm: the
            logits of 32 are 33 MB).
        part: says which of so many windows are scored; None: all.

    Raises ValueError for fewer than two tokens or an impossible window. Sums are float64.
    """
    if tokens.dim() != 1 or tokens.numel() < 2:
        raise ValueError(f"tokens must hold at least 2 ids in one row, got {tuple(tokens.shape)}")
    plan = list(windows(tokens.numel(), length, stride))
    plan = plan[part(len(plan))] if part is not None else plan
    totals, count = Kept(), 0
    for start in range(0, len(plan), batch_size):
        for group in _equal_lengths(plan[start : start + batch_size]):
            batch = torch.stack([tokens[begin:end] for begin, end, _ in group])
            logits = logits_of(batch[:, :-1]).float()
            nats = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
            nats = nats.view(len(group), -1).double()
            for row, (begin, end, first) in zip(nats, group, strict=True):
                totals.add(row[first - 1 - begin :].sum())
                count += end - first
    total = 0.0
    for nats_of_window in totals.stacked().tolist():  # read once: each read waits for a GPU
        total += nats_of_window
    return Score(total, count)


def _equal_lengths(
    plan: list[tuple[int, int, int]],
) -> Iterator[list[tuple[int, int, int]]]:
    """Split a batch of windows where the length changes: only the last one can be shorter."""
    length = plan[0][1] - plan[0][0]
    equal = [window for window in plan if window[1] - window[0] == length]
    yield equal
    if rest := plan[len(equal) :]:
        yield rest
