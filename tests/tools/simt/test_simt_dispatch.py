"""The experts' kernels of csrc/cuda on the CPU: sorting choices, moving rows, biases, gradients."""

import pytest
import torch

from tools.simt.dispatch_checks import check_biases, check_rows, check_sorted, draw_choices
from tools.simt.kernels import Kernels
from tools.simt.launch import SCHEDULES

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module", params=["plain", "trace"])
def kernels(request):
    return Kernels(request.param)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"),
    [(0, 4, 2), (1, 1, 1), (7, 5, 3), (33, 64, 8), (257, 100, 2), (300, 1024, 4), (1500, 16, 2),
     (64, 33, 33)],
)  # fmt: skip
def test_choices_are_sorted_stably(kernels, num_tokens, num_experts, top_k):
    experts = draw_choices(num_tokens, num_experts, top_k)
    check_sorted(kernels, experts, num_experts, SCHEDULES)


def test_all_choices_of_one_expert_and_none(kernels):
    for experts in (torch.full((50, 1), 3), torch.full((50, 2), -1)):
        check_sorted(kernels, experts, 8)


def test_an_index_that_no_expert_has_is_noted_and_dropped(kernels):
    experts = draw_choices(60, 8, 2)
    experts[41, 0], experts[20, 1], experts[59, 0] = 8, -2, 1000
    check_sorted(kernels, experts, 8, bad_row=20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "num_experts", "top_k", "shift"),
    [(0, 8, 4, 2, 0), (1, 1, 1, 1, 0), (13, 7, 5, 3, 0), (37, 64, 16, 2, 0), (37, 64, 16, 2, 1),
     (21, 130, 8, 8, 0), (9, 1024, 4, 1, 0)],
)  # fmt: skip
def test_rows_move_there_and_back(
    kernels, dtype, num_tokens, hidden_size, num_experts, top_k, shift
):
    sizes = num_tokens, hidden_size, num_experts, top_k
    check_rows(kernels, SCHEDULES[:3], dtype, *sizes, shift)


def test_rows_are_moved_bit_for_bit(kernels):
    """Without weights a row is a copy: NaN payloads and negative zeros too."""
    source = torch.tensor([[0.0, -0.0, torch.inf, torch.nan], [1e-40, 3.4e38, -1.0, 2.0]])
    slots = torch.tensor([1, 0, -1, 3], dtype=torch.int32)
    moved = kernels.gather_rows(source, None, slots, 2)
    assert torch.equal(moved.view(torch.int32)[[0, 1, 3]], source.view(torch.int32)[[0, 0, 1]])
    assert torch.equal(moved[2], torch.zeros(4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", range(4))
@pytest.mark.parametrize(
    ("counts", "size", "dropped", "shift"),
    [((0,), 8, 0, 0), ((3,), 1, 2, 0), ((0, 5, 0, 0, 130, 1), 24, 9, 0),
     ((0, 5, 0, 0, 130, 1), 24, 9, 1), ((128, 256, 0), 300, 140, 0), ((3, 140), 515, 2, 1),
     ((1,) * 70, 7, 0, 0)],
)  # fmt: skip
def test_biases_and_activations(kernels, dtype, activation, counts, size, dropped, shift):
    """Chunks of 128 rows: experts without rows, with one, with a chunk to the row, with more."""
    check_biases(kernels, SCHEDULES[:3], dtype, counts, size, dropped, activation, shift)


def test_the_bias_gradient_of_an_expert_with_many_chunks(kernels):
    # 9 * 128 + 1 rows of ones, the 10 chunks of expert 1, and nothing of expert 0: counts.
    rows = torch.ones(1153, 3)
    _, grad = kernels.bias_activation_backward(rows, None, None, torch.tensor([0, 0, 1153]), 0)
    assert grad.tolist() == [[0, 0, 0], [1153, 1153, 1153]]


def test_the_most_experts(kernels):
    offsets = torch.arange(1025) // 2  # every second expert has a row
    rows, bias = torch.zeros(512, 2), torch.arange(2048.0).view(1024, 2)
    moved = kernels.bias_activation(rows, bias, offsets, 0)
    assert torch.equal(moved, bias[1::2])
