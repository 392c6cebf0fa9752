"""A few kernels, each waited for: a library that crashes does so here, and the output says where.

python -m tools.gpu_run.first_kernel [cuda | cpu]
"""

from __future__ import annotations

import sys

import torch

from moge_bench import route
from moge_bench.ops import extension


def main() -> None:
    """Run one dispatch, and one route forward and backward; name each before it begins."""
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    for module, problem in (extension.load(), extension.load_cuda()):
        print("library:", module.__file__ if module else problem, flush=True)

    def begin(name: str) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        print("begins:", name, flush=True)

    begin("tensors")
    x = torch.randn(64, 8, device=device)
    logits = torch.randn(64, 16, device=device, requires_grad=True)
    if device.type == "cuda":  # an op without a CPU kernel
        begin("dispatch")
        experts = torch.arange(128, device=device).reshape(64, 2) % 16
        offsets = torch.ops.moge.dispatch(x, experts, 16)[1]
        begin("offsets")
        assert offsets.tolist() == list(range(0, 129, 8)), offsets
    begin("route")
    routing = route(logits, 2, group_size=3, border="torus")
    begin("backward")
    (routing.weights.square().sum() + routing.group_loss).backward()
    begin("gradient")
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    print("the first kernels run on", device)


if __name__ == "__main__":
    main()
