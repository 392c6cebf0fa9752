"""Every kernel of the library once, for compute-sanitizer (small) or ncu (large)."""

from __future__ import annotations

import sys

import torch

from moge_bench import group_norm, route

SMALL_ROUTERS = (
    (5, 2, "torus"), (16, 1, "valid"), (64, 2, "valid"), (126, 3, "torus"), (300, 8, "torus"),
    (1024, 2, "torus"),
)  # fmt: skip
# What kernels of their own serve, of every number of slots a lane.
SMALL_WIDER = ((16, 2), (48, 4), (100, 4), (256, 8), (300, 4), (1024, 8))
SMALL_EXPERTS = ((1, 1, 7), (16, 2, 64), (300, 3, 33))
LARGE_ROUTERS = (
    (65536, 64, torch.float32), (65536, 64, torch.bfloat16), (65536, 256, torch.float32),
    (1 << 20, 64, torch.float32),
)  # fmt: skip
LARGE_EXPERTS = ((65536, 256, torch.float32), (65536, 1024, torch.bfloat16))


def router(num_tokens: int, num_experts: int, top_k: int, dtype: torch.dtype, border: str) -> None:
    """Forward and backward of moge::route and moge::group_norm."""
    size = 3 if border == "torus" or num_experts >= 9 else 1
    logits = torch.randn(num_tokens, num_experts, device="cuda").to(dtype).requires_grad_()
    routing = route(logits, top_k, group_size=size, border=border, nonfinite="propagate")
    loss = routing.weights.sum() + routing.group_loss + routing.importance.square().sum()
    loss.backward()
    scores = torch.rand(num_tokens, num_experts, device="cuda").to(dtype).requires_grad_()
    group_norm(scores, group_size=size, border=border, nonfinite="propagate").backward()


def wider(num_tokens: int, num_experts: int, top_k: int, dtype: torch.dtype) -> None:
    """Forward and backward with all that "Wider routing" adds, by sigmoid and by softmax."""
    bias = torch.randn(num_experts, device="cuda") / 8
    mask = torch.arange(num_tokens, device="cuda") % 4 > 0
    for function in ("sigmoid", "softmax"):
        logits = torch.randn(num_tokens, num_experts, device="cuda").to(dtype).requires_grad_()
        routing = route(
            logits, top_k, score_function=function, bias=bias, num_groups=4, top_groups=2,
            scale=2.5, mask=mask, unit_energy=True, nonfinite="propagate",
        )  # fmt: skip
        loss = routing.weights.sum() + routing.group_loss + routing.importance.square().sum()
        loss.backward()
    scores = torch.rand(num_tokens, num_experts, device="cuda").to(dtype).requires_grad_()
    group_norm(scores, mask=mask, unit_energy=True, nonfinite="propagate").backward()


def experts(num_tokens: int, num_experts: int, top_k: int, size: int, dtype: torch.dtype) -> None:
    """The ops around the products of the experts."""
    x, rows = (torch.randn(n, size, device="cuda").to(dtype) for n in
               (num_tokens, num_tokens * top_k))  # fmt: skip
    chosen = torch.randint(-1, num_experts, (num_tokens, top_k), device="cuda")
    _, offsets, slots, positions, *_ = torch.ops.moge.dispatch(x, chosen, num_experts)
    weights = torch.rand(num_tokens, top_k, device="cuda")
    torch.ops.moge.combine(rows, weights, slots, positions)
    torch.ops.moge.combine(rows, None, slots, positions)
    torch.ops.moge.combine_backward(x, rows, weights, slots, positions)
    bias = torch.randn(num_experts, size, device="cuda").to(dtype).requires_grad_()
    rows.requires_grad_()
    for activation in (0, 1):
        torch.ops.moge.bias_activation(rows, bias, offsets, activation).sum().backward()


def main() -> None:
    """Run the small or the large calls, as the argument says."""
    torch.manual_seed(0)
    if sys.argv[1] == "small":
        for num_experts, top_k, border in SMALL_ROUTERS:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                router(67, num_experts, top_k, dtype, border)
        for num_experts, top_k in SMALL_WIDER:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                wider(67, num_experts, top_k, dtype)
        for num_experts, top_k, size in SMALL_EXPERTS:
            for dtype in (torch.float32, torch.float16):
                experts(131, num_experts, top_k, size, dtype)
    else:
        torch.cuda.cudart().cudaProfilerStart()
        for num_tokens, num_experts, dtype in LARGE_ROUTERS:
            router(num_tokens, num_experts, 2, dtype, "valid")
        wider(65536, 256, 8, torch.bfloat16)
        for num_tokens, size, dtype in LARGE_EXPERTS:
            experts(num_tokens, 64, 2, size, dtype)
        torch.cuda.cudart().cudaProfilerStop()
    torch.cuda.synchronize()
    print("calls done")


if __name__ == "__main__":
    main()
