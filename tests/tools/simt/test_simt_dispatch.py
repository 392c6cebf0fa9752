"""Dispatch and combine of csrc/cuda on the CPU: sorting choices, moving rows, their adjoints."""

import pytest
import simt_launch
import torch
from simt_kernels import Kernels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module", params=["plain", "trace"])
def kernels(request):
    return Kernels(request.param)


def draw_choices(num_tokens, num_experts, top_k, dropped=0.2):
    """Return (T, k) experts, all of a row different, some of them -1."""
    order = torch.rand(num_tokens, num_experts).argsort(dim=1)[:, :top_k]
    return order.masked_fill(torch.rand(order.shape) < dropped, -1).contiguous()


def sorted_by_torch(experts, num_experts):
    flat = experts.flatten()
    kept = ((flat >= 0) & (flat < num_experts)).nonzero().flatten()
    order = kept[flat[kept].argsort(stable=True)]
    slots = torch.full(flat.shape, -1, dtype=torch.int32)
    slots[: len(order)] = order.int()
    positions = torch.full(flat.shape, -1, dtype=torch.int32)
    positions[order] = torch.arange(len(order), dtype=torch.int32)
    offsets = torch.zeros(num_experts + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(flat[kept], minlength=num_experts).cumsum(0)
    return {"offsets": offsets, "slots": slots, "positions": positions.view(experts.shape)}


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"),
    [(0, 4, 2), (1, 1, 1), (7, 5, 3), (33, 64, 8), (257, 100, 2), (300, 1024, 4), (1500, 16, 2),
     (64, 33, 33)],
)  # fmt: skip
def test_choices_are_sorted_stably(kernels, num_tokens, num_experts, top_k):
    experts = draw_choices(num_tokens, num_experts, top_k)
    for schedule in simt_launch.SCHEDULES:
        kernels.schedule(schedule)
        ours = kernels.sort_choices(experts, num_experts, strict=True)
        for name, truth in sorted_by_torch(experts, num_experts).items():
            assert torch.equal(ours[name], truth), name
        assert ours["bad_row"].item() == -1


def test_all_choices_of_one_expert_and_none(kernels):
    for experts in (torch.full((50, 1), 3), torch.full((50, 2), -1)):
        ours = kernels.sort_choices(experts, 8)
        for name, truth in sorted_by_torch(experts, 8).items():
            assert torch.equal(ours[name], truth), name


def test_an_index_that_no_expert_has_is_noted_and_dropped(kernels):
    experts = draw_choices(60, 8, 2)
    experts[41, 0], experts[20, 1], experts[59, 0] = 8, -2, 1000
    ours = kernels.sort_choices(experts, 8, strict=True)
    assert ours["bad_row"].item() == 20
    for name, truth in sorted_by_torch(experts, 8).items():
        assert torch.equal(ours[name], truth), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "num_experts", "top_k", "shift"),
    [(0, 8, 4, 2, 0), (1, 1, 1, 1, 0), (13, 7, 5, 3, 0), (37, 64, 16, 2, 0), (37, 64, 16, 2, 1),
     (21, 130, 8, 8, 0), (9, 1024, 4, 1, 0)],
)  # fmt: skip
def test_rows_move_there_and_back(
    kernels, dtype, num_tokens, hidden_size, num_experts, top_k, shift
):
    experts = draw_choices(num_tokens, num_experts, top_k)
    order = sorted_by_torch(experts, num_experts)
    slots, positions = order["slots"], order["positions"]
    source = torch.randn(num_tokens, hidden_size).to(dtype)
    rows = torch.randn(num_tokens * top_k, hidden_size).to(dtype)
    grad = torch.randn(num_tokens, hidden_size).to(dtype)
    weights = torch.rand(num_tokens, top_k)
    kept = slots >= 0
    of_choice = slots.clamp(min=0).long()

    def gathered(weighted):
        scale = weights.flatten()[of_choice] if weighted else torch.ones(len(slots))
        moved = source.double()[of_choice // top_k] * scale.double()[:, None]
        return torch.where(kept[:, None], moved, 0.0)

    picked = (
        rows.double()[positions.clamp(min=0).long()]
        if len(rows)
        else rows.new_zeros((0, top_k, hidden_size), dtype=torch.float64)
    )
    picked = torch.where((positions >= 0)[..., None], picked, 0.0)
    expected = {
        "gather": gathered(False),
        "weighted": gathered(True),
        "combine": (picked * weights.double()[..., None]).sum(1),
        "sum": picked.sum(1),
        "weight_grad": (picked * grad.double()[:, None]).sum(2),
    }
    seen = []
    for schedule in simt_launch.SCHEDULES[:3]:
        kernels.schedule(schedule)
        ours = {
            "gather": kernels.gather_rows(source, None, slots, top_k, shift=shift),
            "weighted": kernels.gather_rows(source, weights, slots, top_k, shift=shift),
            "combine": kernels.combine_rows(rows, weights, positions, shift=shift),
            "sum": kernels.combine_rows(rows, None, positions, shift=shift),
            "weight_grad": kernels.combine_weight_grad(grad, rows, positions, shift=shift),
        }
        for name, truth in expected.items():
            rounding = torch.finfo(ours[name].dtype).eps / 2
            scale = truth.abs().max().item() if truth.numel() else 0.0
            torch.testing.assert_close(
                ours[name].double(), truth, rtol=rounding * 1.01 + 1e-6, atol=1e-6 * scale
            )
        seen.append(ours)
    for name, value in seen[0].items():
        assert all(torch.equal(value, other[name]) for other in seen), name


def test_rows_are_moved_bit_for_bit(kernels):
    """Without weights a row is a copy: NaN payloads and negative zeros too."""
    source = torch.tensor([[0.0, -0.0, torch.inf, torch.nan], [1e-40, 3.4e38, -1.0, 2.0]])
    slots = torch.tensor([1, 0, -1, 3], dtype=torch.int32)
    moved = kernels.gather_rows(source, None, slots, 2)
    assert torch.equal(moved.view(torch.int32)[[0, 1, 3]], source.view(torch.int32)[[0, 0, 1]])
    assert torch.equal(moved[2], torch.zeros(4))
