"""One bounded case of more than 2^31 entries: a row of 64 logits seen 2^25 + 3 times.

The view has a stride of 0 and takes 128 bytes; the ops read contiguous rows, so they copy it, to
4 GiB of bfloat16. All tokens being one, the results are known without a reference of that size.
"""

from __future__ import annotations

import torch

from moge_bench import route

TOKENS, EXPERTS, TOP_K = 2**25 + 3, 64, 1
_NEEDED_GIB = 11


def check(num_tokens: int = TOKENS) -> str:
    """Route them, forward and backward; return what was found in one sentence."""
    row = torch.linspace(-2, 2, EXPERTS).roll(17)[None].bfloat16()
    small = row.clone().requires_grad_()
    one = route(small, TOP_K, backend="reference")
    (wanted,) = torch.autograd.grad(one.importance @ torch.arange(EXPERTS).float(), small)
    many = row.expand(num_tokens, -1).requires_grad_()
    routing = route(many, TOP_K, backend="extension")
    (grad,) = torch.autograd.grad(routing.importance @ torch.arange(EXPERTS).float(), many)
    expert = int(one.experts)
    load = torch.zeros(EXPERTS, dtype=torch.int64)
    load[expert] = num_tokens
    right = {
        "experts": bool((routing.experts == expert).all()),
        "load": torch.equal(routing.load, load),
        "importance": torch.allclose(routing.importance, one.importance * num_tokens, rtol=1e-5),
        "group_loss": torch.allclose(routing.group_loss, one.group_loss, rtol=1e-5),
        # The first and the last rows stand for all: a wrong offset shows where it overflows.
        "gradient": all(
            torch.allclose(part.float(), wanted.float(), rtol=1e-2, atol=1e-3)
            for part in (grad[:1000], grad[num_tokens // 2 :][:1000], grad[-1000:])
        ),
    }
    wrong = [name for name, value in right.items() if not value]
    said = f"wrong: {', '.join(wrong)}" if wrong else "as those of one row, forward and backward"
    return f"route of {num_tokens} x {EXPERTS} = {num_tokens * EXPERTS} bfloat16 logits: {said}"


def _available_gib() -> float:
    with open("/proc/meminfo") as file:
        found = [line.split()[1] for line in file if line.startswith("MemAvailable")]
    return int(found[0]) / 2**20


if __name__ == "__main__":
    if _available_gib() < _NEEDED_GIB:
        print(f"not run: it needs {_NEEDED_GIB} GiB of memory, {_available_gib():.0f} are free")
    else:
        print(check())
