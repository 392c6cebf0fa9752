import math

import pytest
import torch

from moge_bench.training.perplexity import Score, score_stream, windows


def bigram_logits(tokens):
    """A model whose next-token distribution depends on the token alone: row t of a fixed table."""
    return TABLE[tokens]


torch.manual_seed(0)
VOCABULARY = 7
TABLE = torch.randn(VOCABULARY, VOCABULARY)
TOKENS = torch.randint(0, VOCABULARY, (20,))


def by_hand(tokens):
    total = 0.0
    for current, following in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True):
        row = [math.exp(value) for value in TABLE[current].tolist()]
        total -= math.log(row[following] / sum(row))
    return math.exp(total / (len(tokens) - 1))


@pytest.mark.parametrize(("length", "stride"), [(5, 4), (5, 1), (8, 3), (20, 19), (64, 63)])
def test_twenty_tokens_by_hand(length, stride):
    score = score_stream(bigram_logits, TOKENS, length=length, stride=stride, batch_size=3)
    assert score.num_tokens == 19
    assert score.perplexity == pytest.approx(by_hand(TOKENS), rel=1e-6)


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_uniform_model_scores_the_vocabulary_size(stride):
    score = score_stream(
        lambda tokens: torch.zeros(*tokens.shape, 256), TOKENS, length=5, stride=stride
    )
    assert score.perplexity == pytest.approx(256, rel=1e-6)


@pytest.mark.parametrize("num_tokens", [2, 3, 4, 5, 6, 9, 10, 11, 40])
@pytest.mark.parametrize(("length", "stride"), [(5, 4), (5, 2), (5, 1), (2, 1), (9, 4)])
def test_windows_score_every_token_but_the_first_exactly_once(num_tokens, length, stride):
    scored, previous_end = [], None
    for begin, end, first in windows(num_tokens, length, stride):
        assert end - begin <= length
        assert first > begin
        context = first - begin
        assert context >= min(length - stride, first)
        assert previous_end is None or first == previous_end
        scored += range(first, end)
        previous_end = end
    assert scored == list(range(1, num_tokens))


def test_more_context_is_used_when_the_stride_is_small():
    """A model that knows the sequence from two tokens of context, not from one."""
    sequence = torch.tensor([0, 0, 1] * 10)

    def second_order(tokens):
        logits = torch.zeros(*tokens.shape, 2)
        for i in range(1, tokens.shape[1]):
            after_two_zeros = (tokens[:, i] == 0) & (tokens[:, i - 1] == 0)
            logits[:, i, 1] = torch.where(after_two_zeros, 20.0, -20.0)
        return logits

    coarse = score_stream(second_order, sequence, length=4, stride=3)
    fine = score_stream(second_order, sequence, length=4, stride=1)
    assert fine.perplexity < coarse.perplexity


def test_bits_per_byte_by_hand():
    # 10 tokens at log 4 nats are 20 bits; over 5 bytes, 4 bits a byte.
    assert Score(10 * math.log(4), 10).bits_per_byte(5) == pytest.approx(4.0)


def test_perplexity_beyond_the_numbers_is_none():
    # The largest float64 is exp(709.78).
    assert Score(3 * 709.0, 3).perplexity == pytest.approx(8.218e307, rel=1e-3)
    assert Score(3 * 710.0, 3).perplexity is None
    assert Score(3 * 710.0, 3).cross_entropy == 710.0


@pytest.mark.parametrize("tokens", [[], [3]])
def test_too_few_tokens(tokens):
    with pytest.raises(ValueError, match="at least 2 ids"):
        score_stream(bigram_logits, torch.tensor(tokens, dtype=torch.int64), length=4, stride=2)


@pytest.mark.parametrize(("length", "stride"), [(4, 0), (4, 4), (1, 1)])
def test_impossible_windows(length, stride):
    with pytest.raises(ValueError, match="must be"):
        list(windows(10, length, stride))
