import math

import pytest
import torch

from moge_bench import route
from moge_bench.ops.choice import Choice
from moge_bench.ops.reference import activation
from moge_bench.ops.route import route_with_taps
from moge_bench.routing.balance import BALANCE_LOSSES, squared_cv, switch_loss, vmoe_loss, z_loss


def routing_of(rows, top_k=1, **settings):
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    return route(logits, top_k, group_size=None, backend="reference", **settings)


def test_switch_by_hand():
    # Scores (softmax of logs): [0.5, 0.25, 0.25] and [0.2, 0.2, 0.6].
    routing = routing_of([[math.log(2), 0, 0], [0, 0, math.log(3)]])
    # f = [1/2, 0, 1/2]; P = [0.35, 0.225, 0.425]; 3 * (0.175 + 0.2125) = 1.1625.
    assert float(switch_loss(routing)) == pytest.approx(1.1625, abs=1e-12)


def test_switch_is_n_when_collapsed_and_one_when_uniform():
    collapsed = routing_of([[60.0, 0, 0, 0]] * 5)
    assert float(switch_loss(collapsed)) == pytest.approx(4.0)
    uniform = routing_of((10.0 * torch.eye(4)).tolist())
    assert float(switch_loss(uniform)) == pytest.approx(1.0)


def test_squared_cv_uses_the_unbiased_variance():
    # mean 2, squared deviations 1 + 0 + 1, variance 2 / (3 - 1) = 1, CV^2 = 1 / 4.
    assert float(squared_cv(torch.tensor([1.0, 2.0, 3.0]))) == 0.25
    assert float(squared_cv(torch.tensor([7.0]))) == 0.0


def test_vmoe_load_by_hand():
    noise = torch.tensor([[0.1, -0.1]], dtype=torch.float64)
    routing = routing_of([[0.0, 0.3]], noise=noise)
    # Noisy logits [0.1, 0.2]: the threshold is 0.2, noise_std 1/2.
    # load = [Phi((0 - 0.2) / 0.5), Phi((0.3 - 0.2) / 0.5)] = [Phi(-0.4), Phi(0.2)].
    load = torch.tensor([0.344578258, 0.579259709], dtype=torch.float64)
    score = 1 / (1 + math.exp(0.3))
    importance = torch.tensor([score, 1 - score], dtype=torch.float64)
    expected = (squared_cv(importance) + squared_cv(load)) / 2
    assert float(vmoe_loss(routing)) == pytest.approx(float(expected), abs=1e-8)


def test_vmoe_load_is_the_probability_to_stay_in_the_top_k():
    torch.manual_seed(0)
    num_experts, top_k, draws = 4, 2, 200_000
    logits = torch.randn(1, num_experts, dtype=torch.float64) * 0.3
    noise = torch.randn(1, num_experts, dtype=torch.float64) / num_experts
    routing = route(logits, top_k, group_size=None, noise=noise, backend="reference")
    threshold = (logits + noise).sort(descending=True).values[0, top_k - 1]
    fresh = torch.randn(draws, num_experts, dtype=torch.float64) / num_experts
    simulated = (logits + fresh >= threshold).double().mean(dim=0)
    margin = (logits - threshold) * num_experts
    analytic = torch.special.ndtr(margin)[0]
    # Standard error of a share of 200,000 draws is at most 0.5 / sqrt(200000) = 0.0011.
    assert torch.allclose(simulated, analytic, atol=0.005)
    expected = (squared_cv(routing.importance) + squared_cv(analytic)) / 2
    assert float(vmoe_loss(routing)) == pytest.approx(float(expected), abs=1e-12)


def test_vmoe_load_far_from_the_threshold_is_that_of_float64():
    torch.manual_seed(3)
    num_tokens, num_experts = 40, 16
    logits, noise = torch.randn(num_tokens, num_experts), torch.randn(num_tokens, num_experts) / 16
    given = logits.requires_grad_()
    loss = vmoe_loss(route(given, 1, group_size=None, noise=noise, backend="reference"))
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    threshold = (exact + noise).amax(1, keepdim=True)
    margins = (exact - threshold) * num_experts
    assert float(margins.min()) < -50  # where erfc and its derivative underflow
    load, importance = torch.special.ndtr(margins).sum(0), exact.softmax(1).sum(0)
    expected = (squared_cv(importance) + squared_cv(load)) / 2
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert torch.allclose(given.grad.double(), exact.grad, rtol=1e-5, atol=5e-7)


def biased(logits, top_k, noise, bias, backend="reference"):
    return route_with_taps(
        logits, None, None, Choice(logits.shape[1], top_k), noise=noise, bias=bias,
        nonfinite="error", backend=backend,
    )  # fmt: skip


def test_vmoe_load_knows_the_selection_bias():
    """Against the definition: draw the noise of one expert anew, hold the softmax's sum."""
    torch.manual_seed(0)
    num_experts, top_k, draws = 4, 2, 200_000
    logits = torch.randn(1, num_experts, dtype=torch.float64) * 0.3
    noise = torch.randn(1, num_experts, dtype=torch.float64) / num_experts
    bias = torch.tensor([0.1, -0.05, 0.0, 0.9], dtype=torch.float64)
    routing = biased(logits, top_k, noise, bias)
    noisy = logits + noise
    keys = torch.softmax(noisy, dim=-1) + bias
    assert routing.experts[0, 0] == 3  # 0.9 above all others
    threshold = keys.sort(descending=True).values[0, top_k - 1]
    fresh = torch.randn(draws, num_experts, dtype=torch.float64) / num_experts
    simulated = (logits + fresh - noisy.logsumexp(-1)).exp() + bias >= threshold
    share = simulated.double().mean(dim=0)
    assert share[3] == 1  # it stays whatever its noise
    expected = (squared_cv(routing.importance) + squared_cv(share)) / 2
    # Standard error of a share of 200,000 draws is at most 0.0011.
    assert float(vmoe_loss(routing)) == pytest.approx(float(expected), abs=0.005)


def test_vmoe_load_with_equal_biases_is_that_without():
    torch.manual_seed(0)
    logits = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(20, 8, dtype=torch.float64) / 8
    losses = [vmoe_loss(biased(logits, 2, noise, bias)) for bias in (None, torch.full((8,), 0.25))]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(*gradients)


def test_vmoe_load_with_a_bias_has_a_finite_gradient_at_underflowing_scores():
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    routing = biased(logits, 2, torch.zeros(1, 3), torch.tensor([0.0, 0.0, 0.1]))
    (gradient,) = torch.autograd.grad(vmoe_loss(routing), logits)
    assert torch.isfinite(gradient).all()


def test_bias_without_noise_is_no_noise():
    """In evaluation the count of choices enters, bias or not."""
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    routing = biased(logits, 1, None, torch.tensor([0.0, 0.0, 2.0]))
    # The third is chosen: load [0, 0, 1], CV^2 = (1/3) / (1/9) = 3.
    expected = (squared_cv(routing.importance) + 3) / 2
    assert float(vmoe_loss(routing)) == pytest.approx(float(expected))


@pytest.mark.parametrize("loss", [switch_loss, vmoe_loss, z_loss])
@pytest.mark.parametrize("noisy", [False, True])
def test_tokens_that_do_not_count_enter_no_loss(loss, noisy):
    torch.manual_seed(0)
    logits = torch.randn(30, 8, dtype=torch.float64)
    noise = torch.randn(30, 8, dtype=torch.float64) / 8 if noisy else None
    mask = torch.arange(30) % 3 > 0
    logits[~mask] = torch.nan
    logits.requires_grad_()
    alone = route(logits[mask], 2, noise=None if noise is None else noise[mask])
    padded = route(logits, 2, noise=noise, mask=mask)
    torch.testing.assert_close(loss(padded), loss(alone))
    gradients = [torch.autograd.grad(loss(r), logits)[0] for r in (padded, alone)]
    torch.testing.assert_close(*gradients)
    nothing = route(logits, 2, noise=noise, mask=torch.zeros_like(mask))
    assert float(loss(nothing)) == 0.0


def test_z_loss_by_hand():
    # logsumexp = log(1 + 3) and log(2 + 2): mean of two equal squares, (log 4)^2 = 1.9218.
    routing = routing_of([[0.0, math.log(3)], [math.log(2), math.log(2)]])
    assert float(z_loss(routing)) == pytest.approx(math.log(4) ** 2)


@pytest.mark.parametrize("name", ["switch", "vmoe"])
def test_gradient_is_that_of_one_softmax(name):
    """A published failure: an auxiliary loss that applies softmax to the scores again."""
    torch.manual_seed(0)
    logits = torch.randn(32, 8, dtype=torch.float64, requires_grad=True)
    routing = route(logits, 2, group_size=None, backend="reference")
    (got,) = torch.autograd.grad(BALANCE_LOSSES[name](routing), logits)
    scores = torch.softmax(logits, dim=-1)
    if name == "switch":
        share = torch.bincount(logits.argmax(1), minlength=8) / 32
        explicit = 8 * (share * scores.mean(0)).sum()
    else:
        importance = scores.sum(0)
        cv = importance.var(unbiased=True) / importance.mean() ** 2
        explicit = (cv + squared_cv(routing.load.double())) / 2
    (expected,) = torch.autograd.grad(explicit, logits)
    torch.testing.assert_close(got, expected)
    assert got.abs().max() > 1e-6


@pytest.mark.parametrize("name", sorted(BALANCE_LOSSES))
@pytest.mark.parametrize("shape", [(0, 4), (3, 1)])
def test_empty_batch_and_single_expert_are_finite(name, shape):
    logits = torch.zeros(shape, requires_grad=True)
    routing = route(logits, 1, group_size=None, backend="reference")
    assert torch.isfinite(BALANCE_LOSSES[name](routing))


@pytest.mark.parametrize("score_function", ["sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("biased_too", [False, True])
def test_vmoe_load_knows_other_scores(score_function, biased_too):
    """Against the definition: draw the noise of one expert anew, compare f(x + noise) + bias."""
    torch.manual_seed(0)
    num_experts, top_k, draws = 5, 3, 200_000
    logits = torch.randn(1, num_experts, dtype=torch.float64) * 0.3
    noise = torch.randn(1, num_experts, dtype=torch.float64) / num_experts
    bias = torch.tensor([0.1, -0.05, 0.0, 0.9, -0.9], dtype=torch.float64) if biased_too else None
    routing = route(
        logits, top_k, group_size=None, noise=noise, bias=bias, score_function=score_function,
        backend="reference",
    )  # fmt: skip
    keys = [activation(x, score_function) for x in (logits + noise, logits)]
    fresh = torch.randn(draws, num_experts, dtype=torch.float64) / num_experts
    keys[1] = activation(logits + fresh, score_function)
    if bias is not None:
        keys = [key + bias for key in keys]
    threshold = keys[0].sort(descending=True).values[0, top_k - 1]
    share = (keys[1] >= threshold).double().mean(dim=0)
    if biased_too:
        assert share[3] > 0.9999 and share[4] == 0
    shares = activation(logits, score_function)
    importance = (shares / shares.sum()).flatten()
    torch.testing.assert_close(routing.importance, importance)
    expected = (squared_cv(importance) + squared_cv(share)) / 2
    # Standard error of a share of 200,000 draws is at most 0.0011.
    assert float(vmoe_loss(routing)) == pytest.approx(float(expected), abs=0.005)


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("bias", [0.0, 0.3, -0.3, 3.0])
def test_vmoe_load_has_a_finite_gradient_at_scores_out_of_range(score_function, bias):
    logits = torch.tensor([[200.0, 1.0, -200.0]], requires_grad=True)
    routing = route(
        logits, 2, group_size=None, noise=torch.zeros(1, 3), bias=torch.tensor([0.0, 0.0, bias]),
        score_function=score_function,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(vmoe_loss(routing), logits)
    assert torch.isfinite(gradient).all()


def test_vmoe_load_of_ranges_is_refused_where_there_is_noise():
    logits, options = torch.randn(3, 8), {"num_groups": 2, "top_groups": 1, "group_size": None}
    assert torch.isfinite(vmoe_loss(route(logits, 2, **options)))
    with pytest.raises(ValueError, match="no load of choices limited to ranges of experts"):
        vmoe_loss(route(logits, 2, noise=torch.zeros(3, 8), **options))


def test_switch_loss_of_sigmoid_scores_is_of_their_shares():
    # Scores [3/4, 1/4], shares [3/4, 1/4]; first choice 0: 2 * 1 * 3/4.
    routing = routing_of([[math.log(3), -math.log(3)]], score_function="sigmoid")
    assert float(switch_loss(routing)) == pytest.approx(1.5)
