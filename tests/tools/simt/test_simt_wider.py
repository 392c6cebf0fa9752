"""CUDA kernels of the wider routing on the CPU, against the float64 reference.

Of every size class, under schedules that must agree to the bit.
"""

import pytest
import torch

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import Topography, default_map_shape, gaussian_taps
from tools.simt import launch
from tools.simt.kernels import Kernels
from tools.simt.wider import Wider


@pytest.fixture(scope="module")
def kernels():
    return Kernels("plain")


TOKENS = 19
CASES = [  # N, k, choice, with a bias, with a mask, unit energy, reduction
    (8, 2, {"score_function": "sigmoid"}, False, False, False, "token_mean"),
    (33, 3, {"score_function": "sqrtsoftplus", "scale": 2.5}, True, True, True, "token_mean"),
    (64, 2, {}, False, True, True, "token_mean"),
    (64, 8, {"num_groups": 8, "top_groups": 4, "score_function": "sigmoid"}, True, False, True,
     "official_image"),
    (100, 40, {"renormalize": False, "scale": 0.5}, True, True, False, "official_language"),
    (256, 4, {"num_groups": 32, "top_groups": 2}, False, False, True, "token_mean"),
    (300, 5, {"score_function": "sqrtsoftplus", "renormalize": False}, False, True, False,
     "token_mean"),
    (1024, 32, {"num_groups": 16, "top_groups": 8, "score_function": "sigmoid", "scale": 2.5}, True,
     True, True, "official_image"),
]  # fmt: skip


def rounded(name, dtype):
    if name != "grad" or dtype == torch.float32:
        return 2e-5
    return 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_experts", "top_k", "options", "biased", "masked", "unit_energy", "reduction"), CASES
)
def test_routing(
    kernels, dtype, num_experts, top_k, options, biased, masked, unit_energy, reduction
):
    generator = torch.Generator().manual_seed(num_experts)
    logits = torch.randn(TOKENS, num_experts, generator=generator).to(dtype)
    bias = torch.randn(num_experts, generator=generator) / 8 if biased else None
    mask = torch.arange(TOKENS) % 3 > 0 if masked else None
    if masked:
        logits[3] = torch.nan
    noise = torch.randn(TOKENS, num_experts, generator=generator) / 8
    choice = Choice(num_experts, top_k, **options)
    side = 3 if num_experts > 8 else 2
    rows, cols = default_map_shape(num_experts)
    topo = Topography(rows, cols, side, 1, "torus", reduction, unit_energy)
    taps = gaussian_taps(side, 1.0)
    wider = Wider(choice, bias, mask)
    grads = [
        torch.randn(TOKENS, top_k, generator=generator),
        torch.randn(num_experts, generator=generator), torch.tensor(3.0),
    ]  # fmt: skip
    if masked:
        grads[0][3] = 1.0
    results = []
    settings = {"taps": taps, "topo": topo, "renormalize": choice.renormalize, "wider": wider}
    for schedule in launch.SCHEDULES[:2]:
        kernels.schedule(schedule)
        ours = kernels.route(logits, top_k, noise=noise, strict=masked, **settings)
        ours["grad"] = kernels.route_backward(grads, logits, ours, **settings)
        results.append(ours)
    for name, value in results[0].items():
        assert torch.equal(value.nan_to_num(nan=-7), results[1][name].nan_to_num(nan=-7)), name

    x = logits.double()
    x[3] = 0 if masked else x[3]
    x.requires_grad_()
    truth = dict(
        zip(
            ("weights", "experts", "importance", "group_loss", "load", "first_load"),
            reference.route(x, noise, taps, topo, choice, bias, mask), strict=True,
        )
    )  # fmt: skip
    values = [truth[name] for name in ("weights", "importance", "group_loss")]
    (grad,) = torch.autograd.grad(values, x, [g.double() for g in grads])
    if masked:
        grad[3] = 0  # of a row that was routed as zeros
        assert ours["bad_rows"].tolist() == [-1, -1]
    for name in ("experts", "load", "first_load"):
        assert torch.equal(ours[name], truth[name]), name
    truth["grad"] = grad
    for name in ("weights", "importance", "group_loss", "grad"):
        tolerance = rounded(name, dtype)
        torch.testing.assert_close(
            ours[name].double(), truth[name].detach(), rtol=tolerance, atol=tolerance / 4
        )


@pytest.mark.parametrize("num_experts", [12, 300])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["token_mean", "official_image"])
def test_group_norm_of_unit_energy(kernels, num_experts, masked, reduction):
    scores = torch.rand(TOKENS, num_experts)
    scores[4] *= 1e-25  # its squares underflow
    scores[5] = 0
    mask = torch.arange(TOKENS) % 3 > 0 if masked else None
    rows, cols = default_map_shape(num_experts)
    topo, taps = Topography(rows, cols, 3, 2, "torus", reduction, True), gaussian_taps(3, 1.0)
    if masked:
        scores[3] = torch.nan
    settings = {"wider": Wider(mask=mask)}
    loss, bad = kernels.group_norm(scores, taps, topo, strict=True, **settings)
    grad = kernels.group_norm_backward(torch.tensor(2.0), scores, taps, topo, **settings)
    z = scores.double().requires_grad_()
    truth = reference.group_norm(z, taps, topo, mask)
    (expected,) = torch.autograd.grad(truth, z, torch.tensor(2.0).double())
    assert bad.tolist() == [-1, -1]
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=0)
    scale = expected.nan_to_num().abs().amax(1, keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(
        grad.double() / scale, expected.nan_to_num() / scale, rtol=1e-4, atol=1e-5
    )


def test_not_finite(kernels):
    logits = torch.randn(6, 64)
    logits[1, 3], logits[2, 4], logits[4] = torch.nan, torch.inf, -torch.inf
    wider = Wider(Choice(64, 2, score_function="sigmoid"))
    ours = kernels.route(logits, 2, strict=True, wider=wider)
    assert ours["bad_rows"].tolist() == [1, -1]
    assert ours["weights"][1:3].isnan().all() and ours["weights"][[0, 3, 4, 5]].isfinite().all()
    truth = reference.route(logits.double(), None, None, None, wider.choice)
    assert torch.equal(ours["experts"], truth[1])


def test_no_token_that_counts(kernels):
    mask, topo = torch.zeros(6, dtype=torch.bool), Topography(8, 8, 3)
    settings = {"taps": gaussian_taps(3, 1.0), "topo": topo, "wider": Wider(mask=mask)}
    ours = kernels.route(torch.randn(6, 64), 2, **settings)
    assert float(ours["group_loss"]) == 0.0
    assert torch.count_nonzero(ours["importance"]) == torch.count_nonzero(ours["load"]) == 0


def test_settings_that_do_not_fit(kernels):
    with pytest.raises(RuntimeError, match="num_groups must divide num_experts"):
        kernels.route(torch.zeros(1, 64), 1, wider=Wider(Choice(9, 1, num_groups=3)))
    with pytest.raises(RuntimeError, match="top_groups must divide top_k"):
        kernels.route(torch.zeros(1, 64), 3, wider=Wider(Choice(64, 4, num_groups=4, top_groups=2)))
