"""sigma as a tensor: the same filter, no compilation for a new value, no derivative."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from moge_bench import group_norm, route
from moge_bench.ops.topography import gaussian_taps, taps_of_width

SIGMAS = [10.0, 7.5, 5.0, 4.0, 3.0, 2.5, 2.0, 1.7, 1.4, 1.2, 1.0, 0.5]


def routed(logits, sigma, **options):
    return route(logits, 2, sigma=sigma, **options).group_loss


def normed(logits, sigma, **options):
    return group_norm(torch.softmax(logits, -1), sigma=sigma, **options)


each = pytest.mark.parametrize("function", [routed, normed])


@pytest.mark.parametrize("group_size", [1, 2, 3, 8])
@pytest.mark.parametrize("sigma", [*SIGMAS, 1e-3, 1e8])
def test_taps_of_a_tensor(group_size, sigma):
    taps = taps_of_width(group_size, torch.tensor(sigma, dtype=torch.float64), torch.device("cpu"))
    torch.testing.assert_close(taps, gaussian_taps(group_size, sigma), rtol=1e-15, atol=1e-300)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_tensor_gives_what_its_number_gives(function, dtype, backend):
    logits, sigma = torch.randn(5, 16), torch.tensor(2).to(dtype)
    for _ in range(2):  # changed in place: what is remembered of a call must not be its tensor
        expected = function(logits, float(sigma), backend=backend)
        assert torch.equal(function(logits, sigma, backend=backend), expected)
        sigma += 1


@each
def test_twelve_sigmas_are_one_compilation(function, backend):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda logits, sigma: function(logits, sigma, backend=backend, nonfinite="propagate"),
        backend=counter, fullgraph=True,
    )  # fmt: skip
    logits = torch.randn(5, 16, requires_grad=True)
    for number in SIGMAS:
        loss = compiled(logits, torch.tensor(number))
        expected = function(logits, torch.tensor(number), backend=backend)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        grads = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)
    assert counter.frame_count == 1


@each
def test_no_tensor_that_is_no_width(function, backend):
    logits = torch.randn(5, 16)
    for value in (0.0, -1.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="sigma must be positive and finite"):
            function(logits, torch.tensor(value), backend=backend)
    for tensor in (torch.ones(1), torch.ones(2, 2), torch.tensor(True), torch.tensor(1j)):
        with pytest.raises(ValueError, match=r"sigma must be a number, None .* shape \(\), got"):
            function(logits, tensor, backend=backend)


def test_compiled_code_refuses_it_when_it_runs():
    compiled = torch.compile(normed, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(5, 16), torch.tensor(1.0))
    for value in (0.0, torch.nan, torch.inf):
        with pytest.raises(RuntimeError, match="sigma must be positive and finite"):
            compiled(torch.randn(5, 16), torch.tensor(value))


@each
def test_sigma_has_no_derivative(function, backend):
    logits, sigma = torch.randn(5, 16), torch.tensor(1.0)
    refused = pytest.raises(ValueError, match=r"not differentiated: pass sigma.detach\(\)")
    with refused:
        function(logits, sigma.clone().requires_grad_(), backend=backend)
    with refused:
        torch.func.grad(lambda s: function(logits, s, backend=backend))(sigma)
    with refused:
        torch.func.jvp(lambda s: function(logits, s, backend=backend), (sigma,), (sigma,))
    with forward_ad.dual_level(), refused:
        function(logits, forward_ad.make_dual(sigma, torch.ones(())), backend=backend)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@each
def test_vmap_over_sigma(function, backend):
    logits, sigmas = torch.randn(5, 16), torch.tensor(SIGMAS)
    batched = torch.func.vmap(lambda s: function(logits, s, backend=backend))(sigmas)
    slices = torch.stack([function(logits, s, backend=backend) for s in SIGMAS])
    torch.testing.assert_close(batched, slices, rtol=1e-6, atol=0)
