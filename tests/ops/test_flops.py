"""FlopCounterMode against counts by hand: 2 l m n for a product of (l, m) with (m, n)."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transform_cases import cpu_kernels

from moge_bench import group_norm, route
from moge_bench.ops.expert_ffn import expert_ffn

T, K, N, D, F = 7, 2, 4, 8, 16


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def inputs(device="cpu"):
    shapes = ((T, D), (T, K), None, (N, F, D), (N, F), (N, D, F), (N, D))
    return [
        torch.randint(0, N, (T, K), device=device) if shape is None
        else torch.randn(shape, device=device, requires_grad=True)
        for shape in shapes
    ]  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_experts(device):
    tensors = inputs(device)
    # 14 rows through (8 -> 16) and (16 -> 8): 14 * (2 * 8 * 16 + 2 * 16 * 8) = 14 * 512 = 7168.
    assert T * K * (2 * D * F + 2 * F * D) == 7168
    assert counted(lambda: expert_ffn(*tensors, backend="extension")) == 7168
    # Backward: for each of the two products one for its input and one for its matrix.
    y = expert_ffn(*tensors, backend="extension")
    assert counted(lambda: y.sum().backward()) == 2 * 7168


def test_the_reference_counts_the_same():
    tensors = inputs()

    def both(backend):
        expert_ffn(*tensors, backend=backend).sum().backward()

    assert counted(lambda: both("reference")) == counted(lambda: both("extension")) == 3 * 7168


def test_a_router_has_no_products():
    logits = torch.randn(T, 16, requires_grad=True)

    def both():
        (route(logits, 2).group_loss + group_norm(torch.softmax(logits, -1))).backward()

    assert counted(both) == 0


def test_grouped_products():
    # 14 rows of 4 groups through (8 -> 16): 14 * 2 * 8 * 16 = 3584, and twice that backward.
    rows = torch.randn(T * K, D, dtype=torch.bfloat16, requires_grad=True)
    matrices = torch.randn(N, D, F, dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([3, 6, 10, 14], dtype=torch.int32)
    outputs = []
    forward = counted(lambda: outputs.append(functional.grouped_mm(rows, matrices, offs=ends)))
    assert forward == T * K * 2 * D * F == 3584
    upstream = torch.ones_like(outputs[0])
    assert counted(lambda: outputs[0].backward(upstream)) == 2 * 3584
    # Triton's, of a weight (N, f, d): the same.
    offsets = torch.tensor([0, 3, 6, 10, 14])
    with cpu_kernels():
        weight = matrices.detach().mT.requires_grad_()
        assert (
            counted(lambda: outputs.append(torch.ops.moge.grouped_product(rows, weight, offsets)))
            == 3584
        )
        assert counted(lambda: outputs[1].backward(upstream)) == 2 * 3584
    # 4 products of (8, 8) with (8, 16).
    batch = torch.randn(N, D, D, dtype=torch.bfloat16)
    assert counted(lambda: functional.grouped_mm(batch, matrices)) == N * 2 * D * D * F


@pytest.mark.parametrize("first", ["moge_bench", "torch.utils.flop_counter"])
def test_the_formulas_are_there_whichever_is_imported_first(first):
    """In a process of its own; and the counter, with triton, is left to those who ask for it."""
    code = f"""
import sys, torch, {first}
assert ("torch.utils.flop_counter" in sys.modules) == ({first!r} != "moge_bench")
import moge_bench
from torch.utils.flop_counter import flop_registry
assert torch.ops.moge.expert_ffn in flop_registry and torch.ops.moge.route in flop_registry
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
