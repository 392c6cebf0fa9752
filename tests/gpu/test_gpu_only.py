"""What only a GPU can show: streams, graphs, compute-sanitizer, the clock, the layer at work."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from moge_bench import GroupNorm, MoELayer, TopographicRouter, group_norm, route
from moge_bench.ops import validation
from moge_bench.ops.expert_ffn import expert_ffn
from moge_bench.perf import bench, registry, rows
from moge_bench.perf.candidates import Options
from moge_bench.perf.timing import CudaClock
from moge_bench.routing.selection_bias import update_selection_bias

pytestmark = pytest.mark.skipif(
    "MOGE_EMULATED" in os.environ, reason="the emulator has neither streams nor graphs"
)


def forward_and_backward(x, **options):
    routing = route(x, 2, nonfinite="propagate", **options)
    loss = routing.weights.square().sum() + routing.importance.square().sum() + routing.group_loss
    (grad,) = torch.autograd.grad(loss, x)
    return routing.weights.detach(), routing.experts, routing.group_loss.detach(), grad


def test_captured_into_a_graph_and_replayed():
    static = torch.randn(500, 64).requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward_and_backward(static)  # the allocator and autograd warm up outside the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(static)
    for seed in range(3):
        fresh = torch.randn(500, 64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            static.copy_(fresh)
        graph.replay()
        expected = forward_and_backward(fresh.clone().requires_grad_())
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize("module", [
    TopographicRouter(16, 16, 2, nonfinite="propagate"), GroupNorm(nonfinite="propagate"),
])  # fmt: skip
def test_a_captured_graph_follows_an_annealed_sigma(module):
    module = module.cuda()
    static = torch.rand(500, 16)

    def loss():
        result = module(static)
        return result if isinstance(module, GroupNorm) else result.group_loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        loss()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        captured = loss()
    seen = []
    for sigma in (5.0, 1.0, 0.3):
        module.set_sigma(sigma)
        graph.replay()
        assert torch.equal(captured, loss().detach())
        seen.append(float(captured))
    assert len(set(seen)) == 3


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_code_follows_an_annealed_sigma(mode):
    router = TopographicRouter(16, 16, 2, nonfinite="propagate").cuda().requires_grad_(False)
    compiled, x = torch.compile(lambda x: router(x).group_loss, mode=mode), torch.randn(500, 16)
    for sigma in (5.0, 5.0, 5.0, 1.0, 0.3):
        router.set_sigma(sigma)
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(compiled(x), router(x).group_loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigma", [1.0, None])
def test_taps_that_nobody_made_before_are_made_in_the_graph(sigma):
    validation._remembered_groups.cache_clear()
    logits, graph = torch.randn(50, 16), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = route(logits, 2, sigma=sigma, nonfinite="propagate").group_loss
    graph.replay()
    expected = route(logits, 2, sigma=sigma, backend="reference").group_loss
    torch.testing.assert_close(captured, expected, rtol=1e-5, atol=0)


def test_strict_in_a_capture_says_what_to_do():
    logits, graph = torch.randn(8, 16), torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="nonfinite='propagate'"), torch.cuda.graph(graph):
        route(logits, 2)
    assert route(logits, 2).group_loss.isfinite()  # and the process goes on


def test_the_current_stream_is_used():
    logits, stream = torch.randn(4000, 64), torch.cuda.Stream()
    expected = forward_and_backward(logits.clone().requires_grad_())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = torch.empty_like(logits).copy_(logits)
        result = forward_and_backward(late.requires_grad_())
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_a_device_that_is_not_current():
    logits = torch.randn(40, 16)
    here, there = (route(logits.to(d), 2) for d in ("cuda:0", "cuda:1"))
    assert there.weights.device.index == 1 and torch.equal(here.experts.cpu(), there.experts.cpu())


def test_nothing_of_the_size_of_the_scores_is_kept():
    logits = torch.randn(20000, 256).requires_grad_()
    before = torch.cuda.memory_allocated()
    routing = route(logits, 2, nonfinite="propagate")
    kept = torch.cuda.memory_allocated() - before
    # weights 4 B, experts 8 B a choice, two statistics of 4 B a token; scores would be 1024 B.
    assert kept < 20000 * 64 and routing.group_loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_layer_trains_as_on_the_cpu(dtype):
    layer = MoELayer(64, 128, num_experts=16, top_k=2, group_weight=4.0).cpu()
    x = torch.randn(200, 64, device="cpu")
    y, aux = layer(x)
    (y.square().mean() + aux.loss).backward()
    expected = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    layer.cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        z, aux = layer(x.cuda())
    (z.float().square().mean() + aux.loss).backward()
    assert aux.routing.backend == aux.experts_backend == "extension"
    tolerance = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    for name, p in layer.named_parameters():
        error = (p.grad.cpu() - expected[name]).norm() / expected[name].norm()
        assert error < tolerance, name


@pytest.fixture
def _no_waits():
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_step(dtype, **settings):
    """One training step of a layer in ``dtype`` and AdamW, run once: what it allocates is there."""
    layer = MoELayer(64, 128, num_experts=16, top_k=2, nonfinite="propagate", **settings)
    layer.cuda().to(dtype)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    x, mask = torch.randn(512, 64).to(dtype), torch.rand(512) < 0.9

    def step():
        for given in (None, mask):
            y, aux = layer(x, given)
            (y.float().square().mean() + aux.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        if settings.get("bias_update_rate"):
            update_selection_bias(layer)

    step()
    torch.cuda.synchronize()
    return step


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"group_weight": 1.0},
        {"balance": "vmoe", "capacity_factor": 1.0, "noise": True},
        {"capacity_factor": 1.0, "batch_priority": True, "z_loss_weight": 0.1, "bias": False},
        {"balance": "none", "bias_update_rate": 0.01},
    ],
    ids=str,
)
def test_a_training_step_never_waits(settings, dtype, request):
    step = make_step(dtype, **settings)
    request.getfixturevalue("_no_waits")
    step()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_captured_with_its_gradients(bias, dtype):
    """Replayed on tokens that its experts share in other numbers than when it was captured."""
    layer = MoELayer(64, 128, num_experts=16, top_k=2, nonfinite="propagate", bias=bias)
    leaves = [*layer.cuda().to(dtype).parameters()]

    def outputs(x):
        y, aux = layer(x)
        loss = y.float().square().mean() + aux.loss
        return loss.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True)

    static = torch.randn(512, 64).to(dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs(static)  # Triton compiles, the allocator and cuBLAS warm up outside the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs(static)
    one_sided = torch.randn(64).expand(512, 64) + 0.01 * torch.randn(512, 64)
    for fresh in (torch.randn(512, 64).to(dtype), one_sided.to(dtype)):
        static.copy_(fresh)
        graph.replay()
        for ours, eager in zip(captured, outputs(fresh), strict=True):
            assert (ours is None) == (eager is None)
            if ours is not None:
                torch.testing.assert_close(ours, eager)


def test_the_check_of_experts_in_a_capture_says_what_to_do():
    x, w = torch.randn(4, 8).half(), torch.randn(3, 8, 8).half()
    arguments = (x, torch.ones(4, 1), torch.zeros(4, 1).long(), w, None, w, None)
    with (
        pytest.raises(ValueError, match="check_experts=False"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        expert_ffn(*arguments)
    assert expert_ffn(*arguments).isfinite().all()  # and the process goes on


def test_float16_is_public_here():
    logits = torch.randn(30, 16).half()
    assert route(logits, 2).backend == "extension" and group_norm(torch.rand(4, 16).half()) > 0
    x, w = torch.randn(4, 8).half(), torch.randn(3, 8, 8).half()
    y = expert_ffn(x, torch.ones(4, 1), torch.zeros(4, 1).long(), w, None, w, None)
    assert y.dtype == torch.float16


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer(tool):
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("compute-sanitizer is not on PATH")
    code = """
import torch
from moge_bench import route
for n, k in ((5, 2), (64, 2), (300, 8)):
    x = torch.randn(67, n, device="cuda").requires_grad_()
    r = route(x, k, border="torus", nonfinite="propagate")
    (r.weights.sum() + r.group_loss + r.importance.square().sum()).backward()
torch.cuda.synchronize()
"""
    # Mangled names are matched. initcheck must see what torch's kernels write as well.
    ours = [] if tool == "initcheck" else ["--kernel-name", "kernel_substring=moge"]
    command = [program, "--tool", tool, "--error-exitcode", "7", *ours, sys.executable, "-c", code]
    # An allocation a tensor: in a block that tensors share, no access beside one is out of bounds.
    apart = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=apart)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_the_clock_times_the_device():
    clock, a = CudaClock(torch.device("cuda")), torch.randn(4096, 4096)
    short, long = (clock(lambda n=n: [a @ a for _ in range(n)]) for n in (2, 20))
    assert 0 < short < long


def test_the_benchmark_runs_here():
    case = registry.Case("router", 4096, 64, 2, 3)
    settings = bench.Settings(rounds=5, compiled=False, peers=False, options=Options(device="cuda"))
    result = {row.candidate: row for row in bench.run_case(case, settings)}
    assert {row.status for row in result.values()} == {rows.OK}, result
    assert "moge::route" in result["ours"].kernel and result["ours"].median_ms > 0
