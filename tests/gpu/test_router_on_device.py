"""What the CPU's tests cannot say of the router's CUDA kernels: dtypes, bits, errors, compiling."""

import pytest
import torch

from moge_bench import TopographicRouter, group_norm, route
from moge_bench.ops.topography import gaussian_taps

GROUPS = (4, 4, 1, 0, 0, 0)  # as in csrc/plan.h
CHOICE = (2, 1, 0, 1, 1)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def gradients(logits, backend="extension", **options):
    x = logits.detach().clone().requires_grad_()
    routing = route(x, 3, backend=backend, **options)
    loss = routing.weights.square().sum() + routing.importance.square().mean()
    (loss + len(x) * routing.group_loss).backward()
    return routing, x.grad


@pytest.mark.parametrize("top_k", [1, 2, 5, 12])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("options", [
    {"group_size": None},
    {"group_size": 3},
    {"group_size": 2, "border": "torus", "stride": 2, "reduction": "official_image"},
    {"group_size": 7, "border": "torus", "reduction": "official_language", "sigma": None},
])  # fmt: skip
def test_any_routing_of_float32(top_k, renormalize, options):
    logits = torch.randn(37, 12) * 3
    noise = torch.randn(37, 12) / 12
    ours, ours_grad = [], []
    for backend in ("extension", "reference"):
        x = logits.clone().requires_grad_()
        routing = route(x, top_k, renormalize=renormalize, noise=noise, backend=backend, **options)
        (routing.weights.square().sum() + routing.group_loss).backward()
        ours.append(routing)
        ours_grad.append(x.grad)
    assert torch.equal(ours[0].experts, ours[1].experts)
    assert torch.equal(ours[0].load, ours[1].load)
    for name in ("weights", "importance", "group_loss"):
        a, b = (getattr(routing, name) for routing in ours)
        assert a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-5, atol=1e-6), name
    assert torch.allclose(*ours_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_experts", [8, 33, 64])
def test_every_dtype_is_computed_in_float32(device, dtype, num_experts):
    """The op itself: on the CPU, where this runs emulated, route() refuses float16."""
    logits = torch.randn(29, num_experts).to(dtype)
    taps = gaussian_taps(1, None).to(device)
    plan = ((1, num_experts, 1, 0, 0, 0), CHOICE)
    ours = torch.ops.moge.route(logits, None, taps, *plan, True)
    wide = torch.ops.moge.route(logits.float(), None, taps, *plan, True)
    for a, b in zip(ours, wide, strict=True):
        assert a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-6, atol=1e-7)
    assert {t.dtype for t in ours} == {torch.float32, torch.int64}
    weights, experts, importance, loss, _, _, stats = wide
    upstream = (torch.randn_like(weights), torch.randn_like(importance), torch.ones_like(loss))
    rest = (taps, experts, weights, stats, *plan)
    narrow = torch.ops.moge.route_backward(*upstream, logits, *rest)
    exact = torch.ops.moge.route_backward(*upstream, logits.float(), *rest)
    assert narrow.dtype == dtype
    # Computed alike, then rounded once: to 2^-11 of the value in float16, 2^-8 in bfloat16.
    assert torch.allclose(narrow.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("num_tokens", [1, 33, 1000])
def test_the_same_input_gives_the_same_bits(num_tokens):
    logits = torch.randn(num_tokens, 64)
    (first, first_grad), (second, second_grad) = gradients(logits), gradients(logits)
    for name in ("weights", "experts", "importance", "group_loss", "load", "first_load"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert torch.equal(first_grad, second_grad)


def test_opcheck(device):
    taps, logits = gaussian_taps(3, 1.0).to(device), torch.randn(20, 16, requires_grad=True)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    plan = (GROUPS, CHOICE)
    arguments = (logits, torch.randn(20, 16), taps, *plan, False)
    torch.library.opcheck(torch.ops.moge.route.default, arguments, test_utils=checks)
    weights, experts, *_, stats = torch.ops.moge.route(logits.detach(), *arguments[1:])
    torch.library.opcheck(
        torch.ops.moge.route_backward.default,
        (torch.randn(20, 2), torch.randn(16), torch.tensor(1.0), logits.detach(), taps, experts,
         weights, stats, *plan), test_utils=checks,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("logits must have shape", {"logits": torch.zeros(16)}),
        ("logits must be float32, .* got Double", {"logits": torch.zeros(4, 16).double()}),
        ("1 to 1024 experts", {"logits": torch.zeros(4, 1025)}),
        ("noise must have shape", {"noise": torch.zeros(4, 3)}),
        ("top_k must be from 1 to num_experts=16, got 17", {"choice": (17, 1, 0, 1, 1)}),
        (r"rows \* cols must equal num_experts=16, got 4 and 5", {"groups": (4, 5, 1, 0, 0, 0)}),
        ("stride must be at least 1, got 0", {"groups": (4, 4, 0, 0, 0, 0)}),
        ("reduction must be 0 .* got 3", {"groups": (4, 4, 1, 0, 3, 0)}),
        ("taps must be float64", {"taps": gaussian_taps(3, 1.0).float()}),
        ("taps must be contiguous, of shape", {"taps": gaussian_taps(3, 1.0)[:0]}),
        ("taps of length 5 do not fit the 4x4 map", {"taps": gaussian_taps(5, 1.0)}),
    ],
)  # fmt: skip
def test_the_op_itself_checks_what_memory_depends_on(device, match, change):
    arguments = {
        "logits": torch.zeros(4, 16), "noise": None, 
        "taps": gaussian_taps(3, 1.0).to(device), "groups": GROUPS, "choice": CHOICE,
        "strict": True,
    }  # fmt: skip
    torch.ops.moge.route(**arguments)
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in change.items()
    }
    with pytest.raises((ValueError, TypeError), match=match):
        torch.ops.moge.route(**(arguments | moved))


@pytest.mark.parametrize("shape", [(4, 2), (3, 2), (4, 3)])
def test_the_backward_op_checks_every_shape(device, shape):
    names = ("experts", "weights", "grad_weights")
    arguments = {
        "grad_weights": torch.zeros(4, 2), "grad_importance": None, "grad_loss": None,
        "logits": torch.zeros(4, 16), "taps": gaussian_taps(3, 1.0).to(device),
        "experts": torch.zeros(4, 2).long(), "weights": torch.zeros(4, 2),
        "row_stats": torch.zeros(4, 2), "groups": GROUPS, "choice": CHOICE,
    }  # fmt: skip
    for name in names:
        changed = arguments | {name: torch.zeros(shape).to(arguments[name].dtype)}
        if shape == (4, 2):
            torch.ops.moge.route_backward(**changed)
            continue
        with pytest.raises(ValueError, match="must have shape"):
            torch.ops.moge.route_backward(**changed)


def test_an_annealed_sigma_reaches_the_kernel():
    router = TopographicRouter(8, num_experts=16, top_k=2, sigma=5.0)
    router.to(torch.zeros(1).device)
    x = torch.randn(10, 8)
    wide = router(x).group_loss
    router.set_sigma(0.3)
    narrow = router(x).group_loss
    expected = group_norm(router(x).scores, sigma=0.3, backend="reference")
    assert not torch.allclose(wide, narrow) and torch.allclose(narrow, expected, rtol=1e-5)


def test_compiled():
    def objective(x):
        routing = route(x, 2, backend="extension", nonfinite="propagate")
        return (routing.weights**2).sum() + routing.group_loss, routing.experts

    logits = torch.randn(40, 16)
    results = []
    for function in (torch.compile(objective, fullgraph=True), objective):
        x = logits.clone().requires_grad_()
        value, experts = function(x)
        value.backward()
        results.append((value.detach(), x.grad, experts))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)
