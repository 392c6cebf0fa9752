"""One timed process of the gate: it imports one built revision and answers timing requests.

Run as a file, not as a module (``python -I worker.py TREE``): both revisions are driven by the
same worker, and it uses only the public surface of the revision it is given. Requests and answers
are JSON lines on stdin and stdout.

    {"prepare": case, "threads": n}   -> {"ready": backend}
    {"calls": n}                      -> {"wall": s, "cpu": s}, of the fastest call
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


def make_step(case: dict[str, Any]) -> tuple[Callable[[], object], str]:
    """Return (forward and backward of ``case``, the backend that ran), inputs freshly allocated."""
    import torch

    import moge_bench

    generator = torch.Generator().manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[case["dtype"]]
    shape = (case["num_tokens"], case["num_experts"])
    logits = torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    def route() -> Any:
        return moge_bench.route(
            logits, case["top_k"], group_size=case["group_size"], border=case["border"],
            renormalize=case["top_k"] > 1,
        )  # fmt: skip

    first = route()
    grad_weights = torch.randn(first.weights.shape, generator=generator)
    grad_loss = torch.ones(())
    if case["op"] == "router":

        def router_step() -> object:
            routing = route()
            return torch.autograd.grad(
                [routing.weights, routing.group_loss], logits, [grad_weights, grad_loss]
            )

        return router_step, first.backend

    from moge_bench.moe.experts import Experts

    torch.manual_seed(0)
    experts = Experts(case["hidden_size"], case["ffn_size"], case["num_experts"], bias=False)
    x = torch.randn(case["num_tokens"], case["hidden_size"], generator=generator)
    grad_y = torch.randn(x.shape, generator=generator)
    leaves = [x.requires_grad_(), logits, *experts.parameters()]

    def layer_step() -> object:
        routing = route()
        y = experts(x, routing.weights, routing.experts)
        return torch.autograd.grad([y, routing.group_loss], leaves, [grad_y, grad_loss])

    return layer_step, first.backend


def answer(request: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one request; ``state`` keeps the step between requests."""
    if "prepare" in request:
        import torch

        torch.set_num_threads(request["threads"])
        state.clear()  # the old inputs are freed first, so every case is laid out anew
        state["step"], backend = make_step(request["prepare"])
        return {"ready": backend}
    step, calls = state["step"], request["calls"]
    walls, cpus = [], []
    for _ in range(calls):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    # The fastest call of a visit: what other load adds (cold caches, preemption) only ever slows.
    return {"wall": min(walls), "cpu": min(cpus)}


def main() -> None:
    """Serve requests until stdin closes."""
    tree = os.path.realpath(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    sys.path.insert(0, tree)
    import moge_bench

    home = os.path.dirname(os.path.dirname(os.path.realpath(moge_bench.__file__)))
    state: dict[str, Any] = {}
    reply: dict[str, Any] = {"hello": home} if home == tree else {"error": f"imported {home}"}
    print(json.dumps(reply), file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), state)
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
