"""Other score functions, bias, ranges, scale and unit energy (docs/method.md "Wider routing")."""

import math

import pytest
import torch
from wider_cases import DOUBLE, OPTIONS, call, objective

from moge_bench import group_norm, route
from moge_bench.ops.expert_ffn import expert_ffn

FUNCTIONS = ["softmax", "sigmoid", "sqrtsoftplus"]


def routed(logits, backend, **options):
    logits = logits.detach().requires_grad_()
    routing = call(logits, backend, **options)
    (gradient,) = torch.autograd.grad(objective(routing), logits)
    return routing, gradient


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("noisy", [False, True])
def test_extension_is_the_reference(options, noisy):
    logits = torch.randn(40, 16, dtype=DOUBLE)
    noise = torch.randn(40, 16, dtype=DOUBLE) / 4 if noisy else None
    ours, truth = (
        routed(logits, backend, noise=noise, **options) for backend in ("extension", "reference")
    )
    for name in ("experts", "load", "first_load"):
        assert torch.equal(getattr(ours[0], name), getattr(truth[0], name)), name
    for name in ("weights", "importance", "group_loss", "scores"):
        torch.testing.assert_close(getattr(ours[0], name), getattr(truth[0], name), rtol=2e-11,
                                   atol=1e-14)  # fmt: skip
    torch.testing.assert_close(ours[1], truth[1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_are_computed_in_float32(backend, options, dtype):
    logits = torch.randn(40, 16).to(dtype)
    ours, gradient = routed(logits, backend, **options)
    truth, wanted = routed(logits.double(), "reference", **options)
    assert torch.equal(ours.experts, truth.experts)
    for name in ("weights", "importance", "group_loss"):
        torch.testing.assert_close(
            getattr(ours, name).double(), getattr(truth, name), rtol=2e-5, atol=1e-6
        )
    # What reaches the logits by two ways is rounded on each, and bfloat16 has 8 bits.
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (torch.finfo(dtype).eps, 1e-4)
    torch.testing.assert_close(gradient.double(), wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradient_is_that_of_differences(options):
    options = {name: value for name, value in options.items() if name != "mask"}
    logits = torch.randn(3, 16, dtype=DOUBLE, requires_grad=True)

    def differentiable(x):
        routing = call(x, "reference", **options)
        return routing.weights, routing.importance, routing.group_loss

    assert torch.autograd.gradcheck(differentiable, (logits,))


def test_scores_by_hand(backend):
    # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-ln 3) = 1/4.
    logits = torch.tensor([[-math.log(3), math.log(3), 0.0]], dtype=DOUBLE)
    options = {"group_size": None, "backend": backend}
    sigmoid = route(logits, 2, score_function="sigmoid", **options)
    assert sigmoid.experts.tolist() == [[1, 2]]
    assert sigmoid.weights[0].tolist() == pytest.approx([0.75 / 1.25, 0.5 / 1.25])
    assert sigmoid.importance.tolist() == pytest.approx([0.25 / 1.5, 0.75 / 1.5, 0.5 / 1.5])
    # softplus(ln(e^4 - 1)) = 4 and softplus(ln(e - 1)) = 1: scores 2 and 1.
    logits = torch.tensor([[math.log(math.e - 1), math.log(math.exp(4) - 1)]], dtype=DOUBLE)
    root = route(logits, 2, score_function="sqrtsoftplus", renormalize=False, scale=3, **options)
    assert root.weights[0].tolist() == pytest.approx([6, 3])
    assert root.scores[0].tolist() == pytest.approx([1, 2])
    assert root.importance.tolist() == pytest.approx([1 / 3, 2 / 3])


def test_bias_moves_the_selection_alone(backend):
    # Scores 0.5, 0.3, 0.2; with the bias 0.5, 0.3, 0.45: the third comes second.
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    bias = torch.tensor([0, 0, 0.25])
    routing = route(logits, 2, bias=bias, group_size=1, backend=backend)
    assert routing.experts.tolist() == [[0, 2]]
    assert routing.weights[0].tolist() == pytest.approx([0.5 / 0.7, 0.2 / 0.7])
    assert routing.importance.tolist() == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize("score_function", FUNCTIONS)
@pytest.mark.parametrize("ranges", [{}, {"num_groups": 8, "top_groups": 4}])
def test_a_bias_of_minus_infinity_closes_an_expert(backend, score_function, ranges):
    logits, bias = torch.randn(30, 16), torch.zeros(16)
    bias[3:9] = -torch.inf
    options = {"score_function": score_function, "backend": backend, **ranges}
    routing = route(logits, 4, bias=bias, **options)
    assert torch.count_nonzero(routing.load[3:9]) == 0
    bias[3:9] = torch.nan  # ranks as that
    assert torch.equal(route(logits, 4, bias=bias, **options).experts, routing.experts)


def test_ranges_by_hand(backend):
    # Ranges {0, 1}, {2, 3}, {4, 5} with sums of two 0.40, 0.32, 0.28: the first alone is open for
    # top_groups = 1, though expert 2 has the largest score.
    scores = torch.tensor([[0.2, 0.2, 0.3, 0.02, 0.14, 0.14]], dtype=DOUBLE)
    limited = route(scores.log(), 2, num_groups=3, top_groups=1, group_size=None, backend=backend)
    assert limited.experts.tolist() == [[0, 1]]
    # The sums of logits, ln 0.04 = -3.2, ln 0.006 = -5.1, ln 0.0196 = -3.9, would order otherwise.
    # top_groups = 2: a range ranks by its best score: 0.2, 0.3, 0.14.
    limited = route(scores.log(), 2, num_groups=3, top_groups=2, group_size=None, backend=backend)
    assert limited.experts.tolist() == [[2, 0]]


@pytest.mark.parametrize("score_function", FUNCTIONS)
def test_ties_of_ranges_go_to_the_lower(backend, score_function):
    routing = route(
        torch.zeros(3, 16), 4, num_groups=4, top_groups=2, score_function=score_function,
        backend=backend,
    )  # fmt: skip
    assert routing.experts.tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("bias", [None, torch.zeros(16)])
def test_scores_that_round_to_equal_floats_tie(backend, bias):
    """sigmoid(20) = 1 - 2e-9 is 1 in float32, sqrt(softplus(-300)) = 7e-66 is 0."""
    logits = torch.arange(20.0, 36)[None]
    options = {"bias": bias, "backend": backend}
    for score_function, values in (("sigmoid", logits), ("sqrtsoftplus", 20 * logits - 1000)):
        routing = route(values, 3, score_function=score_function, **options)
        assert routing.experts.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("score_function", FUNCTIONS)
@pytest.mark.parametrize("ranges", [{}, {"num_groups": 4, "top_groups": 2}])
@pytest.mark.parametrize("top_k", [2, 8])
def test_what_is_not_finite_propagates(backend, score_function, ranges, top_k):
    logits = torch.randn(20, 16)
    logits[3, :] = torch.nan
    logits[5, 2] = torch.nan
    logits[7, 4] = torch.inf
    logits[9, :] = -torch.inf
    logits[11, [0, 3, 8]] = -torch.inf  # masked experts: a score of exactly 0
    options = {"score_function": score_function, "backend": backend, **ranges}
    with pytest.raises(ValueError, match="logits must be finite, got NaN or inf in row 3"):
        route(logits, top_k, **options)
    routing = route(logits, top_k, nonfinite="propagate", **options)
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[3, 5, 7, 9]] = True
    dead[9] = score_function == "softmax"  # else a row of scores 0
    assert routing.weights[dead].isnan().all() and routing.weights[~dead].isfinite().all()
    assert routing.group_loss.isnan() and routing.importance.isnan().all()
    for row in routing.experts:
        assert len(set(row.tolist())) == top_k and row.min() >= 0 and row.max() < 16
    assert torch.equal(routing.experts[3], torch.arange(top_k))
    assert routing.load.sum() == 20 * top_k
    logits[[3, 5, 7]] = 0
    logits[9] = 0 if score_function == "softmax" else -torch.inf
    alive, gradient = routed(
        logits, top_k=top_k, nonfinite="propagate", unit_energy=True, **options
    )
    assert alive.group_loss.isfinite() and alive.importance.isfinite().all()
    assert gradient.isfinite().all()
    assert torch.count_nonzero(gradient[11, [0, 3, 8]]) == 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_tokens(backend, options):
    options = {name: value for name, value in options.items() if name != "mask"}
    routing, gradient = routed(torch.zeros(0, 16), backend, **options)
    assert routing.experts.shape == (0, options.get("top_k", 2))
    assert routing.group_loss.item() == 0 and gradient.shape == (0, 16)
    assert torch.equal(routing.load, torch.zeros(16, dtype=torch.int64))


@pytest.mark.parametrize(
    ("side", "one", "adjacent", "scattered", "uniform"),
    [(4, 0.1848, 0.2365, 0.2494, 0.25), (8, 0.0463, 0.0592, 0.0924, 0.125)],
)
def test_unit_energy_asks_for_few_neighbours(backend, side, one, adjacent, scattered, uniform):
    """One expert, four adjacent, four scattered, all alike: docs/method.md "A repair: unit energy".

    On 8x8 the four share no window, and each has a quarter of the energy: 4 * 1 / 2 * 0.0463, less
    what eps adds where a window is empty.
    """
    scores = torch.zeros(4, side, side, dtype=DOUBLE)
    scores[0, 0, 0] = 1
    scores[1, :2, :2] = 0.25
    scores[2, :: side // 2, :: side // 2] = 0.25
    scores[3] = 1 / side**2
    losses = [
        group_norm(row.reshape(1, -1), border="torus", unit_energy=True, backend=backend).item()
        for row in 7 * scores  # it does not depend on the scale of the scores
    ]
    assert losses == pytest.approx([one, adjacent, scattered, uniform], abs=5e-5)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1.2e-38, 1e-37, 1e-25, 1e30])
def test_unit_energy_of_scores_of_any_size(backend, size):
    """The energy of 16 scores of 1e-25 is 1.6e-49, which float32 does not hold."""
    scores = torch.full((2, 16), size, requires_grad=True)
    loss = group_norm(scores, unit_energy=True, border="torus", backend=backend)
    # Each of 16 equal scores is 1 / 4 after division: g = sqrt(1 / 16); of zeros it is sqrt(1e-8).
    # Below 1.2e-38 numbers are subnormal, and count as zeros.
    assert loss.item() == pytest.approx(0.25 if size > 1.18e-38 else 1e-4, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.abs().max() <= (1e-6 / size if size > 1.18e-38 else 0)


def test_unit_energy_of_sigmoid_scores_that_underflow(backend):
    logits = torch.full((3, 16), -200.0)
    logits[1, :3] = -60.0  # sigmoid 1e-26
    logits[2] = -92.0  # 1e-40, subnormal
    routing, gradient = routed(logits, backend, unit_energy=True, score_function="sigmoid")
    assert routing.group_loss.isfinite() and gradient.isfinite().all()


def test_group_norm_takes_unit_energy_with_a_mask(backend):
    scores, mask = torch.rand(30, 16, dtype=DOUBLE), torch.arange(30) % 3 > 0
    options = {"unit_energy": True, "backend": backend}
    padded = torch.where(mask[:, None], scores, torch.nan)
    got = group_norm(padded, mask=mask, **options)
    unit = scores[mask] / scores[mask].norm(dim=1, keepdim=True)
    torch.testing.assert_close(got, group_norm(unit, backend="reference"))
    torch.testing.assert_close(got, group_norm(scores[mask], **options))


def test_int32_indices(backend):
    logits = torch.randn(5, 16)
    routing = route(logits, 2, index_dtype=torch.int32, backend=backend)
    assert routing.experts.dtype == torch.int32
    assert torch.equal(routing.experts.long(), route(logits, 2, backend=backend).experts)
    weights = torch.randn(16, 8, 4), None, torch.randn(16, 4, 8), None
    x = torch.randn(5, 4)
    assert torch.equal(
        expert_ffn(x, routing.weights, routing.experts, *weights, backend=backend),
        expert_ffn(x, routing.weights, routing.experts.long(), *weights, backend=backend),
    )


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, r"score_function must be one of .*got 'relu'", {"score_function": "relu"}),
        (TypeError, "num_groups must be an int, got 2.0", {"num_groups": 2.0}),
        (ValueError, "num_groups must divide num_experts=16, got 3", {"num_groups": 3}),
        (ValueError, "top_groups must be at least 1, got 0", {"top_groups": 0}),
        (ValueError, "at most num_groups=1 and divide top_k=2, got 2", {"top_groups": 2}),
        (ValueError, "at most num_groups=8 and divide top_k=2, got 3",
         {"num_groups": 8, "top_groups": 3}),
        (ValueError, "top_groups=1 ranges of 1 experts hold fewer than top_k=2",
         {"num_groups": 16}),
        (TypeError, "scale must be a number, got '2'", {"scale": "2"}),
        (ValueError, "scale must be positive and finite, got 0", {"scale": 0}),
        (ValueError, "scale must be positive and finite, got nan", {"scale": math.nan}),
        (TypeError, "unit_energy must be True or False, got 1", {"unit_energy": 1}),
        (TypeError, "bias must be a torch.Tensor or None, got list", {"bias": [0.0]}),
        (TypeError, "bias must be float32.*got torch.int64", {"bias": torch.zeros(16).long()}),
        (ValueError, r"bias must have .* shape \(16,\) .*got \(4,\)", {"bias": torch.zeros(4)}),
        (TypeError, "index_dtype must be one of .*got torch.int16", {"index_dtype": torch.int16}),
    ],
)  # fmt: skip
def test_bad_arguments(backend, error, match, options):
    with pytest.raises(error, match=match):
        route(torch.zeros(3, 16), 2, backend=backend, **options)
