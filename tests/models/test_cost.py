"""The cost of a model against counts by hand: 2 l m n FLOPs for a product of (l, m) with (m, n)."""

import pytest
import torch

from moge_bench.models.build import build_model, count_parameters
from moge_bench.models.cost import cost_of, count_flops_per_token
from moge_bench.presets import resolve

D, F = 64, 128  # width, width of an FFN or an expert: of both tiny systems
FFN = 2 * (2 * D * F)  # 32,768 a token
PROJECTIONS = 4 * (2 * D * D)  # query, key, value and output: 32,768 a token


@pytest.mark.parametrize(("method", "k"), [("dense", None), ("moe", 1), ("moge", 1), ("moe", 2)])
def test_tiny_vit(method, k):
    # A stem: 3 x 3 convolutions to 14 * 14 pixels of 32 channels, 7 * 7 and 4 * 4 of 64, and a
    # 1 x 1. Then 4 layers of 17 tokens, 10 classes of one token. Attention: scores and their
    # products with the values, 17 * 17 * 64 each.
    stem = 2 * (196 * 9 * 32 + 49 * 9 * 32 * 64 + 16 * 9 * 64 * 64 + 16 * 64 * D)
    layer, classes = 17 * (PROJECTIONS + FFN) + 2 * (2 * 17 * 17 * D), 2 * D * 10
    image = stem + 4 * layer + classes
    assert image == 7_983_616  # / 17 = 469,624.5
    if k is not None:  # in two of the layers a gate of 64 experts, and k experts for one FFN
        image += 2 * 17 * (2 * D * 64 + (k - 1) * FFN)
    config = resolve("tiny-vit", method, {} if k is None else {"moe.top_k": k})
    assert count_flops_per_token(config) == round(image / 17)


@pytest.mark.parametrize(("method", "k"), [("dense", None), ("moe", 1), ("moe", 2)])
@pytest.mark.parametrize("vocabulary", [257, 2048])
def test_tiny_lm(method, k, vocabulary):
    # A window has 128 tokens: attention is 2 products of 128 * 64 for each. The head is tied, not
    # free: 64 * vocabulary.
    attention, head = 2 * (2 * 128 * D), 2 * D * vocabulary
    token = 3 * (PROJECTIONS + attention + FFN) + head
    assert token == 294_912 + 128 * vocabulary
    if k is not None:  # in every layer
        token += 3 * (2 * D * 64 + (k - 1) * FFN)
    config = resolve("tiny-lm", method, {} if k is None else {"moe.top_k": k})
    assert count_flops_per_token(config, vocabulary) == token


@pytest.mark.parametrize(
    "settings",
    [
        {"moe.backend": "reference"}, {"moe.backend": "reference", "moe.capacity_factor": 0.5},
        {"moe.balance": "switch", "moe.noise": False},
        {"moe.capacity_factor": 0.5}, {"moe.residual.kind": "adam"}, {"training.precision": "bf16"},
    ],
)  # fmt: skip
def test_what_is_no_matrix_product_does_not_count(settings):
    plain = count_flops_per_token(resolve("tiny-vit", "moge"))
    assert count_flops_per_token(resolve("tiny-vit", "moge", settings)) == plain


def test_counting_draws_nothing_and_knows_the_parameters_of_the_real_model():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    config = resolve("tiny-lm", "moge")
    cost = cost_of(config)
    assert torch.equal(torch.rand(1), expected)
    counts = count_parameters(build_model(config, 2048))
    assert (cost.parameters, cost.active_parameters) == (counts["total"], counts["active"])
    assert cost.exact


def test_a_vocabulary_that_the_data_decide_is_the_most():
    words = cost_of(resolve("tiny-lm", "dense", {"data.tokenizer": "words"}))
    whole = cost_of(resolve("tiny-lm", "dense"))
    assert words.flops_per_token == whole.flops_per_token and not words.exact
    # Bytes have 257 ids whatever is set; 2,048 - 257 embeddings of 64 fewer.
    by_bytes = cost_of(resolve("tiny-lm", "dense", {"data.tokenizer": "bytes"}))
    assert by_bytes.exact and by_bytes.parameters == whole.parameters - 1791 * 64
