"""Capacity and batch priority, worked by hand after V-MoE (arXiv 2106.05974, sections 2.4, 4.1)."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_bench.moe.capacity import (
    capacity_ratio,
    drop_excess,
    expert_capacity,
    limit_capacity,
)


def uniform(experts):
    return torch.full(experts.shape, 0.5)


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts", "factor", "expected"),
    [
        (8, 1, 4, 1.0, 2),  # 8 / 4
        (9, 1, 4, 1.0, 3),  # 9 / 4 = 2.25, up
        (5, 2, 4, 1.05, 3),  # 10.5 / 4 = 2.625, up
        (10, 1, 1, 1.1, 11),  # 11 exactly; in floating point 11.000000000000002
        (3, 1, 32, 0.1, 1),  # never less than one
        (0, 2, 4, 1.0, 0),
        (4, 2, 4, 2, 4),  # an int is a number too
    ],
)
def test_capacity_is_the_ceiling(num_tokens, top_k, num_experts, factor, expected):
    assert expert_capacity(num_tokens, top_k, num_experts, factor) == expected


@given(
    num_tokens=st.integers(0, 100_000), top_k=st.integers(1, 8), num_experts=st.integers(1, 256),
    factor=st.one_of(
        st.floats(0.01, 16),
        # 4/3 prints as 1.3333333333333333.
        st.fractions(Fraction(1, 12), 16, max_denominator=12).map(float),
        st.decimals(1, 16, places=3).map(float),
    ),
)  # fmt: skip
@settings(deadline=None)
def test_capacity_in_64_bit_integers_is_the_exact_ceiling(num_tokens, top_k, num_experts, factor):
    exact = math.ceil(Fraction(repr(factor)) * num_tokens * top_k / num_experts)
    assert expert_capacity(num_tokens, top_k, num_experts, factor) == exact
    assert int(expert_capacity(torch.tensor(num_tokens), top_k, num_experts, factor)) == exact


@pytest.mark.parametrize(
    ("num_tokens", "factor", "expected"),
    [
        (3, 5 / 3, 6),  # 1.6666666666666667 lies above 5/3: 5.0000000000000001, up
        (3, 4 / 3, 4),  # 1.3333333333333333 lies below 4/3
        (0, 5 / 3, 0),
        (1, 3 + 1 / 3e9, 4),  # 3.00000000033, up
        (100, 3 + 1 / 3e9, 301),  # 300.000000033, up
    ],
)
def test_capacity_next_to_a_whole_number(num_tokens, factor, expected):
    assert expert_capacity(num_tokens, 1, 1, factor) == expected


def test_capacity_of_the_tokens_that_count():
    # Expert 0 is chosen by all; B = ceil(3 * 1 * 1.0 / 2) = 2 for the three tokens that count.
    experts = torch.tensor([[0], [-1], [0], [-1], [0]])
    weights = torch.ones(5, 1)
    kept = drop_excess(experts, weights, 2, capacity_ratio(1.0), num_tokens=torch.tensor(3))
    assert kept.tolist() == [[0], [-1], [0], [-1], [-1]]


def test_first_choices_come_before_second_choices():
    # T=3, k=2, N=3, C=0.5: B = ceil(3 * 2 * 0.5 / 3) = 1.
    # Queue: first choices 0, 0, 1, then second choices 1, 2, 0.
    # Expert 0 keeps token 0's first; token 1's first is too late. Expert 1 keeps token 2's FIRST
    # choice although token 0, which is earlier, wants it second. Expert 2 keeps token 1's second.
    experts = torch.tensor([[0, 1], [0, 2], [1, 0]])
    limited = limit_capacity(experts, uniform(experts), 3, 0.5)
    assert limited.tolist() == [[0, -1], [-1, 2], [1, -1]]
    assert experts.tolist() == [[0, 1], [0, 2], [1, 0]]


def test_batch_priority_lets_the_surest_tokens_in():
    # T=4, k=1, N=2, C=1: B = ceil(4 / 2) = 2. Expert 0 is wanted with 0.5, 0.9, 0.6 (tokens 0, 1,
    # 3): in batch order it keeps tokens 0 and 1, by priority tokens 1 and 3.
    experts = torch.tensor([[0], [0], [1], [0]])
    weights = torch.tensor([[0.5], [0.9], [0.1], [0.6]])
    assert limit_capacity(experts, weights, 2, 1.0, False).tolist() == [[0], [0], [1], [-1]]
    assert limit_capacity(experts, weights, 2, 1.0, True).tolist() == [[-1], [0], [1], [0]]


def test_batch_priority_goes_by_the_largest_weight_and_keeps_first_choices_first():
    # B = ceil(2 * 2 * 0.5 / 2) = 1. Token 1's largest weight (0.8) beats token 0's (0.7), though
    # it stands second. First choices: token 1 -> 0 kept, token 0 -> 0 full.
    # Second choices: token 1 -> 1 kept, token 0 -> 1 full.
    experts = torch.tensor([[0, 1], [0, 1]])
    weights = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    assert limit_capacity(experts, weights, 2, 0.5, True).tolist() == [[-1, -1], [0, 1]]


def test_equal_priorities_keep_batch_order():
    experts = torch.zeros(64, 1, dtype=torch.int64)  # B = ceil(64 * 0.25 / 1) = 16
    limited = limit_capacity(experts, uniform(experts), 1, 0.25, True)
    assert limited.flatten().tolist() == [0] * 16 + [-1] * 48


def test_dropped_choices_take_no_room():
    # B = ceil(3 * 1 * 1 / 3) = 1, and token 0's choice is gone already.
    experts = torch.tensor([[-1], [2], [2]])
    assert limit_capacity(experts, uniform(experts), 3, 1.0).tolist() == [[-1], [2], [-1]]


def test_no_tokens():
    experts = torch.zeros(0, 2, dtype=torch.int64)
    for priority in (False, True):
        assert limit_capacity(experts, uniform(experts), 4, 1.0, priority).shape == (0, 2)


@settings(max_examples=60, deadline=None)
@given(
    num_tokens=st.integers(1, 40), top_k=st.integers(1, 3), num_experts=st.integers(3, 9),
    factor=st.sampled_from([0.25, 0.5, 1.0, 1.5, 4.0]), priority=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_matches_a_loop_over_choices(num_tokens, top_k, num_experts, factor, priority, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, num_experts, generator=generator).mul(8).round().div(8)
    weights, experts = scores.topk(top_k)
    tokens = list(range(num_tokens))
    if priority:
        tokens.sort(key=lambda t: -weights[t].max().item())  # Python's sort is stable
    room = [expert_capacity(num_tokens, top_k, num_experts, factor)] * num_experts
    expected = torch.full_like(experts, -1)
    for choice in range(top_k):
        for token in tokens:
            expert = int(experts[token, choice])
            if room[expert]:
                room[expert] -= 1
                expected[token, choice] = expert
    assert torch.equal(limit_capacity(experts, weights, num_experts, factor, priority), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity_factor": 0.0}, "capacity_factor must be positive and finite, got 0.0"),
        ({"capacity_factor": float("nan")}, "capacity_factor must be positive and finite"),
        ({"capacity_factor": "1"}, "capacity_factor must be a positive number, got '1'"),
        ({"num_experts": 0}, "num_experts must be an int of at least 1, got 0"),
        ({"num_experts": 2}, "experts must hold -1 .dropped. or indices from 0 to 1, got values"),
        ({"experts": torch.zeros(3, dtype=torch.int64)}, r"experts must have shape .* got \(3,\)"),
        ({"experts": torch.zeros(2, 1)}, "experts must be int64, got torch.float32"),
        ({"weights": torch.zeros(3, 1)}, r"weights must have the shape .* got \(3, 1\)"),
        ({"weights": torch.zeros(2, 1, dtype=torch.int32)}, "weights must be float32"),
        ({"weights": [0.5]}, "weights must be a torch.Tensor, got list"),
    ],
)
def test_errors_name_the_argument(changes, message):
    arguments = {
        "experts": torch.tensor([[0], [2]]), "weights": torch.ones(2, 1),
        "num_experts": 3, "capacity_factor": 1.0,
    }  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        limit_capacity(**{**arguments, **changes})


def test_the_ratio_is_marked_as_torch_marks_a_constant():
    """By hand, so that `import moge_bench` does not import torch._dynamo."""
    assert vars(torch.compiler.assume_constant_result(lambda: 0)) == vars(capacity_ratio)
