"""Dispatch and combine of csrc/cuda on the CPU: sorting choices, moving rows, their adjoints."""

import pytest
import torch

from tools.simt.dispatch_checks import check_rows, check_sorted, draw_choices
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
