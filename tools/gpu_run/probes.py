"""Questions that only a GPU answers; a line of JSON each, and none stops the next."""

from __future__ import annotations

import gc
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from moge_bench import MoELayer, TopographicRouter, route
from moge_bench.ops import grouped_ffn, reference_experts
from moge_bench.perf import bench, cells, registry
from moge_bench.perf.candidates import ROUTERS, Options
from moge_bench.perf.memory import MIB
from moge_bench.perf.timing import CudaClock
from moge_bench.presets import resolve
from moge_bench.training.tasks import make_task
from moge_bench.training.trainer import TrainingStep
from tools.gpu_run.products import products_by_other_tiles, products_of_the_experts

DEVICE = torch.device("cuda")
Answer = dict[str, Any]


def allocator_before_anything() -> Answer:
    """How much a first product takes for cuBLAS's workspace: it stands in every later peak."""
    a = torch.randn(256, 256, device=DEVICE)
    before = torch.cuda.memory_allocated()
    F.linear(a, a)
    torch.cuda.synchronize()
    return {"workspace_mib": (torch.cuda.memory_allocated() - before) / MIB}


def device() -> Answer:
    """What the card is, and which products torch rounds to TF32."""
    p = torch.cuda.get_device_properties(0)
    return {
        "name": p.name, "sms": p.multi_processor_count, "l2_mib": p.L2_cache_size / MIB,
        "memory_gib": p.total_memory / 2**30, "capability": torch.cuda.get_device_capability(),
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }  # fmt: skip


def clock() -> Answer:
    """The rate of a large copy, and what the clock reads of nothing and of one small kernel."""
    measure = CudaClock(DEVICE)
    a = torch.randn(2**28, device=DEVICE)
    b = torch.empty_like(a)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: b.copy_(a), "nothing": lambda: None, "small": lambda: a[:1].zero_(),
    }  # fmt: skip
    medians = {
        name: statistics.median(measure(call) for _ in range(15)) for name, call in calls.items()
    }
    return {
        "copy_GB_s": 2 * a.numel() * 4 / medians["copy"] / 1e9,
        "nothing_us": medians["nothing"] * 1e6,
        "small_us": medians["small"] * 1e6,
    }


def what_is_seen() -> Answer:
    """Does the dispatch mode see the backward, which runs on another thread on CUDA?"""
    case = registry.Case("router", 4096, 64, 2, 3)
    step, verdict = bench.RouterTask(case, Options(device="cuda")).prepare(ROUTERS[0])
    return {"seen": bench.kernels_seen(step), "ok": verdict.ok, "errors": verdict.errors}


def tf32_in_the_convolution() -> Answer:
    """Is the authors' convolution called wrong because cuDNN rounds it to TF32?"""
    found: Answer = {}
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        task = bench.RouterTask(registry.Case("router", 8192, 64, 2, 3), Options(device="cuda"))
        _, verdict = task.prepare(ROUTERS[1])
        found[f"tf32={allowed}"] = {"ok": verdict.ok, "errors": verdict.errors}
    torch.backends.cudnn.allow_tf32 = True
    return found


def host_time_of_a_call() -> Answer:
    """What a call of the router costs the host, waiting and not."""
    found: Answer = {}
    for policy in ("propagate", "error"):
        x = torch.randn(2176, 16, device=DEVICE)
        route(x, 2, nonfinite=policy)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(200):
            route(x, 2, nonfinite=policy)
        found[f"{policy}_us"] = (time.perf_counter() - begin) / 200 * 1e6
        torch.cuda.synchronize()
    return found


def launches_near_48_kib() -> Answer:
    """Do maps whose static and dynamic shared memory together pass 48 KiB run?"""
    found: Answer = {}
    for num_experts, size in ((1024, 11), (1024, 12), (1024, 13), (1000, 11), (960, 14), (1024, 16),
                              (1024, 17), (1024, 32)):  # fmt: skip
        try:
            x = torch.randn(9, num_experts, device=DEVICE).requires_grad_()
            route(x, 2, group_size=size, border="torus").group_loss.backward()
            torch.cuda.synchronize()
            found[f"N{num_experts}-h{size}"] = "ran"
        except (RuntimeError, ValueError) as error:
            found[f"N{num_experts}-h{size}"] = str(error)[:120]
    return found


def sigma_under_reduce_overhead() -> Answer:
    """Does a compiled router, replayed as a CUDA graph, follow an annealed sigma?"""
    router = TopographicRouter(64, 16, 2, nonfinite="propagate").to(DEVICE)
    compiled = torch.compile(router, mode="reduce-overhead")
    x = torch.randn(256, 64, device=DEVICE)
    pairs = []
    with torch.no_grad():
        for sigma in (0.5, 0.5, 0.5, 1.0, 2.0):
            router.set_sigma(sigma)
            torch.compiler.cudagraph_mark_step_begin()
            pairs.append((float(compiled(x).group_loss), float(router(x).group_loss)))
    return {"compiled_and_eager": pairs}


def waits_of_a_layer() -> Answer:
    """Where a training step of a layer waits for the device."""
    found: Answer = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        layer = MoELayer(64, 128, num_experts=16, top_k=2, group_weight=1.0, nonfinite="propagate")
        layer.to(DEVICE, dtype)
        x = torch.randn(512, 64, device=DEVICE, dtype=dtype)
        for count in range(2):
            torch.cuda.set_sync_debug_mode("warn" if count else "default")
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                y, aux = layer(x)
                (y.float().square().mean() + aux.loss).backward()
        torch.cuda.set_sync_debug_mode("default")
        found[str(dtype)] = sorted(f"{w.filename.split('/')[-1]}:{w.lineno}" for w in seen)
    return found


def experts_that_get_no_token() -> Answer:
    """Are the gradients of idle experts exactly 0, and all finite, after the allocator held NaN?"""
    torch.manual_seed(0)
    num_tokens, d, f, n, top_k = 1000, 64, 128, 8, 2
    busy = torch.tensor([0, 1, 2, 4, 5, 6], device=DEVICE)
    experts = busy[torch.randint(0, 6, (num_tokens, top_k), device=DEVICE)]
    experts[torch.rand(num_tokens, top_k, device=DEVICE) < 0.2] = -1
    drawn = [torch.randn(num_tokens, d), torch.randn(n, f, d) / 8, torch.randn(n, f),
             torch.randn(n, d, f) / 11, torch.randn(n, d)]  # fmt: skip
    scale = torch.rand(num_tokens, top_k, device=DEVICE)
    found: Answer = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        poison = [torch.full((2**22,), float("nan"), device=DEVICE) for _ in range(8)]
        del poison
        results = []
        for function, width in ((grouped_ffn, dtype), (reference_experts, torch.float64)):
            leaves = [t.to(DEVICE, dtype).to(width).clone().requires_grad_() for t in drawn]
            weights = scale.to(torch.float64 if width == torch.float64 else torch.float32).clone()
            weights.requires_grad_()
            y = function.expert_ffn(leaves[0], weights, experts, *leaves[1:], "gelu")
            y.square().mean().backward()
            results.append([y.detach(), weights.grad, *(leaf.grad for leaf in leaves)])
        ours, truth = results
        found[str(dtype)] = {
            "relative_errors": [
                float((a.double() - b).norm() / b.norm()) for a, b in zip(ours, truth, strict=True)
            ],
            "finite": all(bool(t.isfinite().all()) for t in ours),
            "idle_experts_gradient": max(float(t[[3, 7]].abs().max()) for t in ours[3:]),
        }
    return found


def cost_of_expert_biases() -> Answer:
    """What do biases cost a layer in bfloat16, forward and backward?"""
    measure = CudaClock(DEVICE)
    num_tokens, d, f, n, top_k = 16384, 512, 1024, 32, 2
    experts = torch.randint(0, n, (num_tokens, top_k), device=DEVICE)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)
        return values.mul_(0.05).requires_grad_()

    found: Answer = {}
    for bias in (False, True):
        x, w_in, w_out = draw(num_tokens, d), draw(n, f, d), draw(n, d, f)
        weights = torch.rand(num_tokens, top_k, device=DEVICE).requires_grad_()
        b_in, b_out = (draw(n, f), draw(n, d)) if bias else (None, None)
        leaves = [t for t in (x, weights, w_in, b_in, w_out, b_out) if t is not None]
        seed = torch.randn(num_tokens, d, device=DEVICE, dtype=torch.bfloat16)

        def run(
            arguments: Any = (x, weights, experts, w_in, b_in, w_out, b_out, "gelu"),
            leaves: list[torch.Tensor] = leaves, seed: torch.Tensor = seed,
        ) -> object:  # fmt: skip
            return torch.autograd.grad(grouped_ffn.expert_ffn(*arguments), leaves, seed)

        run()
        found[f"bias={bias}_ms"] = statistics.median(measure(run) for _ in range(12)) * 1e3
    return found


def scoring_without_a_wait() -> Answer:
    """How long a scoring pass takes."""
    found: Answer = {}
    for method in ("dense", "moe"):
        config = resolve("tiny-vit", method, {"device": "cuda"}, 0)
        step = TrainingStep(config, make_task(config))
        step()
        step.score()
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            step.score()
            times.append(time.perf_counter() - begin)
        found[f"{method}_ms"] = statistics.median(times) * 1e3
    return found


def peak_of_a_step_after_others() -> Answer:
    """Does the peak of a step depend on what ran before it in the process?"""
    config = resolve("tiny-vit", "dense", {"device": "cuda"}, 0)
    task = make_task(config)
    found: Answer = {}
    for name in ("as found", "after gc.collect()"):
        if name != "as found":
            gc.collect()
        before = torch.cuda.memory_allocated() / MIB
        peak = cells._peak_memory(config, task, DEVICE)[0] / MIB
        found[name] = {"alive_before_mib": before, "peak_mib": peak}
    return found


PROBES = (
    allocator_before_anything, device, clock, what_is_seen, tf32_in_the_convolution,
    host_time_of_a_call, launches_near_48_kib, sigma_under_reduce_overhead, waits_of_a_layer,
    experts_that_get_no_token, cost_of_expert_biases, scoring_without_a_wait,
    peak_of_a_step_after_others, products_of_the_experts, products_by_other_tiles,
)  # fmt: skip


def main() -> None:
    """Ask every question and print its answer as a line."""
    for probe in PROBES:
        try:
            found = probe()
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        print("PROBE", probe.__name__, json.dumps(found, default=str), flush=True)


if __name__ == "__main__":
    main()
