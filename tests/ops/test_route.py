"""route: the op against the reference, in every dtype and many shapes, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_bench import route
from moge_bench.ops.topography import gaussian_taps

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [1, 2, 3, 5, 7, 8, 12, 16, 17, 31, 32, 33, 64, 100, 128, 255, 256, 1000, 1024]


def upstream(num_tokens, num_experts, top_k):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(num_tokens, top_k, generator=generator, dtype=torch.float64),
        torch.randn(num_experts, generator=generator, dtype=torch.float64),
        torch.tensor(0.7 * num_tokens, dtype=torch.float64),
    )


def run(logits, top_k, backend, **options):
    """Return every output of route and the gradient of the logits through all of them."""
    x = logits.detach().clone().requires_grad_()
    routing = route(x, top_k, backend=backend, **options)
    outputs = (routing.weights, routing.importance, routing.group_loss)
    grads = [g.to(routing.weights.dtype) for g in upstream(*logits.shape, top_k)]
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    return {
        "weights": routing.weights.detach(), "importance": routing.importance.detach(),
        "group_loss": routing.group_loss.detach(), "grad": x.grad,
        "experts": routing.experts, "load": routing.load,
    }  # fmt: skip


def assert_same_routing(logits, top_k, rtol=1e-11, atol=1e-13, **options):
    ours = run(logits, top_k, "extension", **options)
    truth = run(logits, top_k, "reference", **options)
    for name in ("experts", "load"):
        assert torch.equal(ours[name], truth[name]), name
    for name in ("weights", "importance", "group_loss", "grad"):
        assert ours[name].dtype == truth[name].dtype and ours[name].shape == truth[name].shape
        assert torch.allclose(ours[name], truth[name], rtol=rtol, atol=atol), name


@pytest.mark.parametrize("num_experts", range(1, 13))
def test_every_small_size_and_k_exactly(num_experts):
    """A published failure is a router that is wrong at exactly one (N, k)."""
    for top_k in range(1, num_experts + 1):
        logits = torch.randn(19, num_experts, dtype=torch.float64)
        for renormalize in (True, False):
            assert_same_routing(
                logits, top_k, renormalize=renormalize, group_size=3, border="torus"
            )
            assert_same_routing(
                logits.float(), top_k, 1e-5, 1e-6, renormalize=renormalize, group_size=None
            )


@pytest.mark.parametrize("num_experts", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_class(num_experts, dtype):
    exact = dtype == torch.float64
    for top_k in sorted({1, 2, 4, 8, 9, num_experts} & set(range(1, num_experts + 1))):
        logits = torch.randn(21, num_experts).to(dtype)
        noise = torch.randn(21, num_experts) / num_experts
        rtol, atol = (1e-11, 1e-13) if exact else (1e-5, 2e-6)
        if dtype == torch.bfloat16:
            rtol, atol = 1e-2, 2e-5  # the gradient is rounded to 8 bits
        if dtype == torch.float16:
            rtol, atol = 2e-3, 2e-6  # to 11 bits, in steps of 6e-8 at least
        assert_same_routing(
            logits, top_k, rtol, atol, noise=noise, group_size=2, border="torus", stride=2
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("num_experts", "group_size"), [(16, 3), (64, 3), (64, 5), (256, 2)])
@pytest.mark.parametrize("renormalize", [True, False])
def test_error_at_most_twice_that_of_pytorch(dtype, spread, num_experts, group_size, renormalize):
    logits = (torch.randn(200, num_experts) * spread).to(dtype)
    options = {"group_size": group_size, "renormalize": renormalize, "border": "torus"}
    oracle = run(logits.double(), 2, "reference", **options)
    theirs = run(logits, 2, "reference", **options)
    ours = run(logits, 2, "extension", **options)
    for name in ("weights", "importance", "group_loss", "grad"):
        truth = oracle[name]
        error = (ours[name].double() - truth).abs().max()
        # PyTorch's error is taken as at least one rounding of the largest entry: on a scalar it
        # is now and then 0 by chance.
        unit = torch.finfo(ours[name].dtype).eps / 2 * truth.abs().max()
        theirs_error = (theirs[name].double() - truth).abs().max()
        assert error <= 2 * max(theirs_error, unit), (name, error / unit, theirs_error / unit)


@given(
    num_tokens=st.integers(1, 40), num_experts=st.integers(1, 40), data=st.data(),
    h=st.integers(1, 6), stride=st.integers(1, 3), seed=st.integers(0, 2**16),
    border=st.sampled_from(["valid", "torus"]), renormalize=st.booleans(), noisy=st.booleans(),
    reduction=st.sampled_from(["token_mean", "official_image", "official_language"]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_routing(
    num_tokens, num_experts, data, h, stride, seed, border, renormalize, noisy, reduction
):
    rows = data.draw(st.sampled_from([r for r in range(1, 41) if num_experts % r == 0]))
    shape = (rows, num_experts // rows)
    if border == "valid":
        h = min(h, *shape)
    top_k = data.draw(st.integers(1, num_experts))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, num_experts, generator=generator, dtype=torch.float64) * 3
    noise = torch.randn(num_tokens, num_experts, generator=generator) if noisy else None
    assert_same_routing(
        logits, top_k, map_shape=shape, group_size=h, stride=stride, border=border,
        renormalize=renormalize, noise=noise, reduction=reduction,
    )  # fmt: skip


@given(seed=st.integers(0, 2**16), num_tokens=st.integers(2, 50))
@settings(max_examples=30, deadline=None)
def test_permuting_tokens_permutes_the_routing(seed, num_tokens):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, 16, generator=generator)
    order = torch.randperm(num_tokens, generator=generator)
    a, b = run(logits, 2, "extension"), run(logits[order], 2, "extension")
    assert torch.equal(a["experts"][order], b["experts"])
    assert torch.equal(a["weights"][order], b["weights"])  # bit for bit, whatever the lane
    assert torch.equal(a["load"], b["load"])
    assert torch.allclose(a["group_loss"], b["group_loss"], rtol=3e-7)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("border", ["valid", "torus"])
def test_gradcheck(renormalize, border):
    def differentiable(x):
        routing = route(x, 3, border=border, renormalize=renormalize, backend="extension")
        return routing.weights, routing.importance, routing.group_loss

    logits = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(differentiable, (logits,))


@pytest.mark.parametrize("names", [["weights"], ["importance"], ["group_loss"],
                                   ["importance", "group_loss"]])  # fmt: skip
@pytest.mark.parametrize("renormalize", [True, False])
def test_the_gradient_of_each_output_alone_reaches_the_logits(names, renormalize):
    logits = torch.randn(20, 16, dtype=torch.float64)
    grads = []
    for backend in ("extension", "reference"):
        x = logits.clone().requires_grad_()
        routing = route(x, 2, renormalize=renormalize, backend=backend)
        sum((getattr(routing, name) ** 2).sum() for name in names).backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, rtol=1e-11, atol=1e-14)
    assert (grads[0].abs().sum(dim=1) > 0).all()


def test_the_gradient_of_the_loss_through_scores_agrees():
    logits = torch.randn(20, 16, dtype=torch.float64, requires_grad=True)
    routing = route(logits, 2, backend="extension")
    assert torch.allclose(routing.scores, torch.softmax(logits, -1))
    assert torch.allclose(routing.scores.sum(dim=0), routing.importance)
    assert torch.allclose(routing.scores.sum(dim=1), torch.ones(20).double())
    assert routing.scores.requires_grad and routing.scores is routing.scores


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 511, 512, 513, 1600, 70000])
def test_every_tail_and_many_chunks(num_tokens):
    assert_same_routing(torch.randn(num_tokens, 9), 2, 1e-5, 1e-5 * num_tokens**0.5)


def test_opcheck():
    taps = gaussian_taps(3, 1.0)
    logits = torch.randn(20, 12, requires_grad=True)
    plan = ((3, 4, 1, 0, 0, 0), (2, 1, 0, 1, 1))  # csrc/plan.h
    for noise in (None, torch.randn(20, 12)):
        torch.library.opcheck(torch.ops.moge.route.default, (logits, noise, taps, *plan, True))
    weights, experts, *_, row_stats = torch.ops.moge.route(logits.detach(), None, taps, *plan, True)
    torch.library.opcheck(
        torch.ops.moge.route_backward.default,
        (torch.randn(20, 2), torch.randn(12), torch.tensor(1.0), logits.detach(), taps, experts,
         weights, row_stats, *plan),
    )  # fmt: skip


def test_compiled_with_any_number_of_tokens():
    def objective(x):
        routing = route(x, 2, backend="extension")
        value = (routing.weights**2).sum() + routing.group_loss + routing.importance[3]
        return value, routing.experts, routing.load

    compiled = torch.compile(objective, fullgraph=True)
    for num_tokens in (20, 33, 600):
        logits = torch.randn(num_tokens, 12)
        results = []
        for function in (compiled, objective):
            x = logits.clone().requires_grad_()
            value, experts, load = function(x)
            value.backward()
            results.append((value.detach(), x.grad, experts, load))
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)
