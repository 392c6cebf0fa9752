"""The module that holds the experts: its parameters, and the sums of hand-made experts."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from moge_bench.moe.experts import Experts


@pytest.fixture
def tiny():
    """d = 1, f = 1, N = 3, ReLU: FFN_e(v) = (e + 1) * relu(v + e) + 10 e."""
    experts = Experts(1, 1, 3, activation="relu", backend="reference")
    with torch.no_grad():
        experts.w_in.fill_(1)
        experts.b_in.copy_(torch.tensor([[0.0], [1.0], [2.0]]))
        experts.w_out.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))
        experts.b_out.copy_(torch.tensor([[0.0], [10.0], [20.0]]))
    return experts


def test_weighted_sum_by_hand(tiny):
    x = torch.tensor([[2.0], [-5.0]])
    weights = torch.tensor([[0.5, 0.25], [1.0, 2.0]], requires_grad=True)
    chosen = torch.tensor([[2, 0], [1, -1]])
    # Token 0: FFN_2(2) = 3 * relu(4) + 20 = 32, FFN_0(2) = 2; y = 0.5 * 32 + 0.25 * 2 = 16.5.
    # Token 1: FFN_1(-5) = 2 * relu(-4) + 10 = 10; y = 10; its second choice was dropped.
    y = tiny(x, weights, chosen)
    assert y.tolist() == [[16.5], [10.0]]
    y.sum().backward()
    assert weights.grad.tolist() == [[32.0, 2.0], [10.0, 0.0]]  # what each expert returned
    # d y / d b_out[e] is the sum of the weights given to e: 0.25, 1, 0.5.
    assert tiny.b_out.grad.flatten().tolist() == [0.25, 1.0, 0.5]


def test_the_same_expert_twice_counts_twice(tiny):
    y = tiny(torch.tensor([[1.0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[1, 1]]))
    assert y.tolist() == [[0.75 * (2 * 2 + 10)]]


def test_initialisation_is_that_of_linear_layers():
    # Uniform on [-b, b] has standard deviation b / sqrt(3); 1e5 draws give it to well below 1 %.
    experts = Experts(64, 256, 8)
    for parameter, fan_in in (
        (experts.w_in, 64), (experts.b_in, 64), (experts.w_out, 256), (experts.b_out, 256),
    ):  # fmt: skip
        bound = fan_in**-0.5
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.99 * bound
    assert experts.w_in.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.01)
    assert nn.Linear(64, 256).weight.abs().max() <= 64**-0.5


def test_generator_decides_the_draw():
    experts = Experts(8, 16, 4)
    draws = []
    for seed in (0, 0, 1):
        experts.reset_parameters(torch.Generator().manual_seed(seed))
        draws.append(experts.w_in.detach().clone())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_upcycled_experts_are_the_dense_ffn():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 12), nn.Linear(12, 6)
    experts = Experts(6, 12, 5, activation="gelu", backend="reference")
    experts.upcycle_(first.weight, first.bias, second.weight, second.bias)
    assert all(parameter.requires_grad for parameter in experts.parameters())
    x = torch.randn(40, 6)
    y = experts(x, torch.full((40, 2), 0.5), torch.randint(0, 5, (40, 2)))
    torch.testing.assert_close(y, second(functional.gelu(first(x))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2, 3], [3], [3, 2], [2]), r"w_in must have shape \(3, 2\) .* got \(2, 3\)"),
        (([3, 2], None, [3, 2], [2]), r"b_in must be a tensor \(3,\) .* bias=True, got None"),
    ],
)
def test_upcycling_errors_name_the_argument(arguments, message):
    tensors = [None if shape is None else torch.zeros(shape) for shape in arguments]
    with pytest.raises(ValueError, match=message):
        Experts(2, 3, 4).upcycle_(*tensors)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((0, 3, 4), {}, "hidden_size must be at least 1, got 0"),
        ((2, 3.5, 4), {}, "ffn_size must be an int, got 3.5"),
        ((2, 3, 4), {"activation": "tanh"}, "activation must be one of .*, got 'tanh'"),
        ((2, 3, 4), {"backend": "cuda"}, "backend must be one of .*, got 'cuda'"),
    ],
)
def test_constructor_errors_name_the_argument(arguments, keywords, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Experts(*arguments, **keywords)


def test_without_bias_there_is_none():
    experts = Experts(2, 3, 4, bias=False, backend="reference")
    assert [name for name, _ in experts.named_parameters()] == ["w_in", "w_out"]
    y = experts(torch.zeros(5, 2), torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.int64))
    assert torch.equal(y, torch.zeros(5, 2))
