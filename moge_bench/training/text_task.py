"""Language modelling as a task: next-token loss, perplexity of clean and of attacked text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from moge_bench.config import RunConfig, TextBackboneConfig, TextDataConfig
from moge_bench.data.text import load_corpus, swap_words
from moge_bench.data.tokenizers import make_tokenizer
from moge_bench.moe.insert import collect_aux
from moge_bench.training.evaluate import Evaluation, Metric, RoutingStatistics, evaluating
from moge_bench.training.perplexity import Score, score_stream
from moge_bench.training.ranks import Ranks
from moge_bench.training.task import Batch, Task, spread

_ATTACK_SEED = 0  # the attacked text is part of the data set: every run is given the same


@dataclass(frozen=True)
class Windows(Dataset):
    """A stream of tokens cut into windows of ``length`` inputs and as many targets."""

    tokens: torch.Tensor
    length: int

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise ValueError(
                f"model.context={self.length} needs {self.length + 1} tokens of training text and "
                f"of validation text; one has {self.tokens.numel()}: shorten the context or use "
                "more text"
            )

    def __len__(self) -> int:
        return (self.tokens.numel() - 1) // self.length

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return inputs and targets, each (len(indices), length), with one gather."""
        starts = torch.as_tensor(indices)[:, None] * self.length
        positions = starts + torch.arange(self.length)
        return self.tokens[positions], self.tokens[positions + 1]


class TextTask(Task):
    """Next-token prediction on a corpus."""

    def __init__(self, config: RunConfig, data: TextDataConfig) -> None:
        assert isinstance(config.model, TextBackboneConfig)  # RunConfig has checked the pair
        self._data, self._context = data, config.model.context
        self._label_smoothing = config.training.label_smoothing
        self._corpus = load_corpus(data.name)
        training = self._corpus.pop("training")
        self._tokenizer = make_tokenizer(data.tokenizer, training, data.vocabulary_size)
        self.vocabulary_size = self._tokenizer.vocabulary_size
        self._windows = Windows(self._tokenizer.stream(training), self._context)

    @property
    def training_data(self) -> Windows:
        """Windows of the training split."""
        return self._windows

    def validation_examples(self, count: int) -> Batch:
        """Return windows of the clean text, and the tokens that follow theirs."""
        stream = self._tokenizer.stream(self._corpus["validation"])
        windows = Windows(stream, self._context)
        return windows.__getitems__(spread(count, len(windows)).tolist())

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy per token."""
        tokens, targets = batch
        logits = model(tokens).logits.float()
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), label_smoothing=self._label_smoothing
        )

    def evaluate(
        self, model: nn.Module, split: str, step: int, ranks: Ranks | None = None
    ) -> Evaluation:
        """Score the whole split, clean and, under the name ``split``_attacked, with words swapped.

        Metrics: perplexity (absent where it exceeds the numbers, at a cross-entropy above 709),
        bits_per_byte (absent where the tokenizer loses text), cross_entropy in nats per token.
        """
        ranks, texts = ranks or Ranks(), {split: self._corpus[split]}
        if self._data.attacked_share:
            texts[f"{split}_attacked"] = [
                swap_words(text, self._data.attacked_share, _ATTACK_SEED + index)
                for index, text in enumerate(texts[split])
            ]
        found = Evaluation([], {})
        for name, documents in texts.items():
            metrics, found.routing[name] = self._score(model, documents, name, step, ranks)
            found.metrics += metrics
        return found

    def _score(
        self, model: nn.Module, documents: list[str], name: str, step: int, ranks: Ranks
    ) -> tuple[list[Metric], list[dict]]:
        statistics = RoutingStatistics()
        with evaluating(model) as device:

            def logits_of(tokens: torch.Tensor) -> torch.Tensor:
                with collect_aux(model) as auxes:
                    logits = model(tokens).logits
                statistics.add(auxes)
                return logits

            score = score_stream(
                logits_of,
                self._tokenizer.stream(documents).to(device),
                # A window reads `context` tokens and predicts one after each.
                length=self._context + 1,
                stride=self._data.stride or self._context,
                part=lambda windows: ranks.slice_of(windows, f"windows of the {name} text"),
            )
        of_ranks = ranks.gather((score.total_nats, score.num_tokens))
        score = Score(*(sum(of) for of in zip(*of_ranks, strict=True)))
        metrics = [Metric("cross_entropy", score.cross_entropy, "nats/token", name, step)]
        if self._tokenizer.lossless:
            num_bytes = sum(len(document.encode("utf-8")) for document in documents)
            bits = score.bits_per_byte(num_bytes)
            metrics.insert(0, Metric("bits_per_byte", bits, "bits/byte", name, step))
        if score.perplexity is not None:
            metrics.insert(0, Metric("perplexity", score.perplexity, "", name, step))
        return metrics, statistics.summary(ranks)
