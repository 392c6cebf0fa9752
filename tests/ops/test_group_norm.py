"""group_norm: the op against the reference, and its contracts for every backend."""

import pytest
import torch

from moge_bench import group_norm
from moge_bench.ops.topography import gaussian_taps

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def loss_and_grad(scores, backend, **options):
    scores = scores.detach().requires_grad_()
    loss = group_norm(scores, backend=backend, **options)
    loss.backward()
    return loss.detach(), scores.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_experts", [1, 2, 6, 12, 31, 64, 130])
@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 1},
        {"group_size": 2, "border": "torus"},
        {"group_size": 3, "border": "torus", "stride": 2, "reduction": "official_image"},
        {"group_size": 6, "border": "torus", "reduction": "official_language", "sigma": None},
    ],
)
def test_matches_the_reference(dtype, num_experts, options):
    scores = torch.randn(33, num_experts).to(dtype)  # any sign
    loss, grad = loss_and_grad(scores, "extension", **options)
    oracle, oracle_grad = loss_and_grad(scores.double(), "reference", **options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 5e-7
    assert torch.allclose(loss.double(), oracle, rtol=tolerance)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
    assert grad.dtype == dtype
    atol = 2**-25 if dtype == torch.float16 else 1e-12  # half of its least step
    assert torch.allclose(grad.double(), oracle_grad, rtol=tolerance, atol=atol)


MAPS = [
    (shape, group_size, border)
    for shape in [(4, 8), (8, 4), (2, 16), (5, 6), (1, 30), (30, 1)]
    for group_size in [1, 2, 3, 4, 5, 7, 40]
    for border in ["valid", "torus"]
    if border == "torus" or group_size <= min(shape)
]


@pytest.mark.parametrize(("shape", "group_size", "border"), MAPS)
@pytest.mark.parametrize("stride", [1, 2, 3, 2000])
def test_every_map_in_float64(shape, group_size, border, stride):
    scores = torch.randn(5, shape[0] * shape[1], dtype=torch.float64)
    options = {"map_shape": shape, "group_size": group_size, "border": border, "stride": stride}
    for ours, truth in zip(
        loss_and_grad(scores, "extension", **options),
        loss_and_grad(scores, "reference", **options),
        strict=True,
    ):
        assert torch.allclose(ours, truth, rtol=1e-11, atol=1e-13)


def test_gradcheck(backend):
    scores = torch.rand(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: group_norm(z, border="torus", stride=2, backend=backend), (scores,)
    )


def test_shifting_a_torus_changes_nothing(backend):
    scores = torch.rand(4, 4, 8, dtype=torch.float64)
    shifted = torch.roll(scores, (1, 3), dims=(1, 2))
    losses = [
        group_norm(z.reshape(4, 32), border="torus", backend=backend) for z in (scores, shifted)
    ]
    assert torch.allclose(*losses, rtol=1e-13)


def test_group_size_one_is_the_mean_score(backend):
    # h = 1: g = sqrt(z^2 + eps), about z; z sums to 1 over N = 16 experts, so the mean is 1 / 16.
    scores = torch.softmax(torch.randn(50, 16), dim=-1)
    assert group_norm(scores, group_size=1, backend=backend).item() == pytest.approx(
        1 / 16, abs=1e-5
    )


def test_scores_of_zero_have_a_gradient_of_zero(backend):
    loss, grad = loss_and_grad(torch.zeros(3, 16), backend)
    assert loss.item() == pytest.approx(1e-4)  # sqrt(eps)
    assert torch.equal(grad, torch.zeros(3, 16))


def test_empty(backend):
    for reduction in ("token_mean", "official_image", "official_language"):
        loss, grad = loss_and_grad(torch.zeros(0, 16), backend, reduction=reduction)
        assert loss.item() == 0 and grad.shape == (0, 16)


def test_non_contiguous(backend):
    scores = torch.rand(16, 40).t()
    assert not scores.is_contiguous()
    ours = loss_and_grad(scores, backend)
    truth = loss_and_grad(scores.contiguous(), backend)
    assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_scores(backend, value):
    scores = torch.rand(40, 16)
    scores[23, 5] = value
    with pytest.raises(ValueError, match=r"scores must be finite.* row 23 .*'propagate'"):
        group_norm(scores, backend=backend)
    loss = group_norm(scores, nonfinite="propagate", backend=backend)
    assert not loss.isfinite()


def test_opcheck():
    taps = gaussian_taps(3, 1.0)
    scores = torch.rand(20, 12, requires_grad=True)
    groups = (3, 4, 1, 0, 0, 0)
    torch.library.opcheck(torch.ops.moge.group_norm.default, (scores, taps, groups, True))
    torch.library.opcheck(
        torch.ops.moge.group_norm_backward.default,
        (torch.tensor(1.0), scores.detach(), taps, groups),
    )


def test_compiled_with_any_number_of_tokens():
    compiled = torch.compile(lambda z: group_norm(z, backend="extension"), fullgraph=True)
    for num_tokens in (20, 33, 47):
        scores = torch.rand(num_tokens, 12)
        grads = []
        for function in (compiled, group_norm):
            z = scores.clone().requires_grad_()
            loss = function(z)
            loss.backward()
            grads.append((loss.detach(), z.grad))
        assert torch.equal(grads[0][0], grads[1][0])
        assert torch.allclose(grads[0][1], grads[1][1])


def test_a_second_derivative_raises():
    scores = torch.rand(3, 12, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(
        group_norm(scores, backend="extension"), scores, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()
