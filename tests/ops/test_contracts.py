"""What is written in route's docstring, for every backend: errors, ties, NaN, empty, underflow."""

import pytest
import torch

from moge_bench import group_norm, route
from moge_bench.ops.topography import gaussian_taps
from moge_bench.ops.validation import FLOAT_DTYPES

LOGITS = torch.zeros(4, 16)


@pytest.mark.parametrize(
    ("error", "match", "logits", "options"),
    [
        (TypeError, "logits must be a torch.Tensor, got list", [[1.0]], {}),
        (TypeError, "logits must be float32.*or float16, got torch.complex64", LOGITS.cfloat(), {}),
        (TypeError, "logits must be float32.*got torch.int64", LOGITS.long(), {}),
        (ValueError, r"logits must have shape .*got \(16,\)", LOGITS[0], {}),
        (ValueError, r"logits must have shape .*got \(1, 4, 16\)", LOGITS[None], {}),
        (ValueError, "1 to 1024 experts", torch.zeros(2, 1025), {}),
        (ValueError, "1 to 1024 experts", torch.zeros(2, 0), {}),
        (ValueError, "top_k must be from 1 to num_experts=16, got 0", LOGITS, {"top_k": 0}),
        (ValueError, "top_k must be from 1 to num_experts=16, got 17", LOGITS, {"top_k": 17}),
        (TypeError, "top_k must be an int, got 2.0", LOGITS, {"top_k": 2.0}),
        (TypeError, "top_k must be an int, got True", LOGITS, {"top_k": True}),
        (ValueError, r"map_shape=\(3, 5\) does not hold", LOGITS, {"map_shape": (3, 5)}),
        (TypeError, "map_shape must be two ints", LOGITS, {"map_shape": (4, 4.0)}),
        (ValueError, "group_size=5 does not fit the 4x4.*is 4", LOGITS, {"group_size": 5}),
        (ValueError, "group_size must be an int >= 1, got 0", LOGITS, {"group_size": 0}),
        (ValueError, "sigma must be positive.*got 0", LOGITS, {"sigma": 0}),
        (ValueError, "sigma must be positive.*got -1.0", LOGITS, {"sigma": -1.0}),
        (ValueError, "sigma must be positive.*got nan", LOGITS, {"sigma": float("nan")}),
        (ValueError, "sigma must be positive.*got inf", LOGITS, {"sigma": float("inf")}),
        (TypeError, "sigma must be a positive number", LOGITS, {"sigma": "1"}),
        (ValueError, "stride must be at least 1, got 0", LOGITS, {"stride": 0}),
        (ValueError, "border must be one of .*got 'wrap'", LOGITS, {"border": "wrap"}),
        (ValueError, "reduction must be one of .*got 'mean'", LOGITS, {"reduction": "mean"}),
        (ValueError, "nonfinite must be one of .*got 'skip'", LOGITS, {"nonfinite": "skip"}),
        (ValueError, r"noise must have the shape .*\(4, 16\).*got \(4, 8\)", LOGITS,
         {"noise": torch.zeros(4, 8)}),
        (TypeError, "noise must be float32.*got torch.int64", LOGITS,
         {"noise": torch.zeros(4, 16).long()}),
    ],
)  # fmt: skip
def test_bad_arguments(backend, error, match, logits, options):
    options = {"top_k": 2, **options}
    with pytest.raises(error, match=match):
        route(logits, backend=backend, **options)
    norm_options = set(options) - {"top_k", "noise"}
    if norm_options and not isinstance(logits, list):
        with pytest.raises(error, match=match):
            group_norm(logits, backend=backend, **{name: options[name] for name in norm_options})


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"backend must be one of .*'fast'"):
        route(LOGITS, 2, backend="fast")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 23, 39])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_nonfinite_input_is_refused_and_named(backend, value, row, dtype):
    logits = torch.randn(40, 16).to(dtype)
    broken = logits.clone()
    broken[row, 5] = value
    broken[39, 2] = value
    with pytest.raises(ValueError, match=rf"logits must be finite.* row {row} .*'propagate'"):
        route(broken, 2, backend=backend)
    with pytest.raises(ValueError, match=rf"noise must be finite.* row {row} .*'propagate'"):
        route(logits, 2, noise=broken, backend=backend)
    assert route(logits, 2, backend=backend).group_loss.isfinite()  # and the process goes on


def test_the_same_error_text_from_every_backend():
    broken = torch.randn(2000, 16)
    broken[1234, 5] = torch.nan
    texts = set()
    for backend in ("reference", "extension"):
        with pytest.raises(ValueError) as caught:
            route(broken, 2, noise=broken, backend=backend)
        texts.add(str(caught.value))
    assert len(texts) == 1


@pytest.mark.parametrize("top_k", [1, 2, 5, 8, 9, 16])
@pytest.mark.parametrize("renormalize", [True, False])
def test_propagate(backend, top_k, renormalize):
    logits = torch.randn(20, 16)
    logits[3, :] = torch.nan
    logits[5, 2] = torch.nan
    logits[7, 4] = torch.inf
    logits[9, :] = -torch.inf
    logits[11, [0, 3, 8]] = -torch.inf  # masked experts: a score of exactly 0
    noise = torch.zeros(20, 16)
    noise[13, 6] = torch.nan
    options = {"renormalize": renormalize, "nonfinite": "propagate", "backend": backend}
    routing = route(logits, top_k, noise=noise, **options)
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[3, 5, 7, 9]] = True
    assert routing.weights[dead].isnan().all() and routing.weights[~dead].isfinite().all()
    assert routing.group_loss.isnan() and routing.importance.isnan().all()
    # Never the same expert twice, whatever the row holds, and all counted.
    for row in routing.experts:
        assert len(set(row.tolist())) == top_k and row.min() >= 0 and row.max() < 16
    assert routing.load.sum() == 20 * top_k
    # NaN ranks as -inf; of equal entries the lower index comes first.
    assert routing.experts[3].tolist() == list(range(top_k))
    assert routing.experts[9].tolist() == list(range(top_k))
    assert routing.experts[7, 0] == 4
    if top_k < 16:
        assert 2 not in routing.experts[5] and 6 not in routing.experts[13]
    else:
        assert routing.experts[5, 15] == 2 and routing.experts[13, 15] == 6


def test_masked_experts_alone_leave_everything_finite(backend):
    logits = torch.randn(20, 16, dtype=torch.float64)
    masked = torch.rand(20, 16) < 0.5
    masked[:, 7] = False
    logits = logits.masked_fill(masked, -torch.inf).requires_grad_()
    routing = route(logits, 1, nonfinite="propagate", backend=backend)
    truth = torch.softmax(logits, -1)
    assert torch.allclose(routing.importance, truth.sum(0))
    assert routing.group_loss.isfinite()
    (routing.group_loss + (routing.importance**2).sum()).backward()
    assert torch.equal(logits.grad[masked], torch.zeros(int(masked.sum())).double())
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("top_k", [1, 2, 3, 8, 9, 16])
def test_ties_go_to_the_lower_index(backend, dtype, top_k):
    routing = route(torch.zeros(20, 16, dtype=dtype), top_k, backend=backend)
    assert torch.equal(routing.experts, torch.arange(top_k).expand(20, top_k))
    logits = torch.zeros(20, 16, dtype=dtype)
    logits[:, 1::2] = -0.0  # equal to 0
    logits[:, 12] = 1
    order = [12, *(e for e in range(16) if e != 12)]
    routing = route(logits, top_k, backend=backend)
    assert routing.experts.tolist() == [order[:top_k]] * 20


def test_few_distinct_values_sort_stably(backend):
    logits = torch.randint(0, 3, (200, 33)).float()
    expected = logits.sort(dim=1, descending=True, stable=True).indices
    for top_k in (1, 2, 4, 7, 8, 9, 33):
        experts = route(logits, top_k, group_size=1, backend=backend).experts
        assert torch.equal(experts, expected[:, :top_k])


def test_no_tokens(backend):
    logits = torch.zeros(0, 16, requires_grad=True)
    for group_size in (3, None):
        routing = route(logits, 2, group_size=group_size, backend=backend)
        assert routing.weights.shape == routing.experts.shape == (0, 2)
        assert routing.scores.shape == (0, 16) and routing.group_loss.item() == 0
        assert torch.equal(routing.importance, torch.zeros(16))
        assert torch.equal(routing.load, torch.zeros(16, dtype=torch.int64))
        (routing.weights.sum() + routing.group_loss + routing.importance.sum()).backward()
        assert logits.grad.shape == (0, 16)


def test_scores_that_underflow(backend):
    # exp(-200) is 0 in float32: z = (1, 0, ...), and every gradient is finite. The weights are a
    # softmax of the kept logits -200 and -201, e / (1 + e) = 0.7311, where the scores are 0 / 0.
    logits = torch.full((3, 16), -201.0)
    logits[:, 0], logits[:, 5] = 0.0, -200.0
    logits.requires_grad_()
    noise = torch.zeros(3, 16)
    noise[:, 0] = -1000.0
    routing = route(logits, 2, noise=noise, backend=backend)
    assert routing.experts.tolist() == [[5, 1]] * 3
    assert routing.weights[0, 0].item() == pytest.approx(0.731059, abs=1e-6)
    (routing.weights[:, 0].sum() + routing.group_loss).backward()
    # d w0 / d x0 = w0 w1 = 0.7311 * 0.2689 = 0.1966
    assert logits.grad[0, 5].item() == pytest.approx(0.196612, abs=1e-6)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("magnitude", [1e4, 1e7, 1e8, 1e9, 1e10, 1e30])
def test_large_logits(backend, magnitude):
    """The exponent of base 2 is the logit times 1.44: its rounding must not become a factor."""
    logits = torch.randn(20, 16) * magnitude
    routing = route(logits, 2, backend=backend)
    assert torch.equal(routing.experts, logits.sort(descending=True).indices[:, :2])
    scores = torch.softmax(logits, -1)
    assert torch.allclose(routing.importance, scores.sum(0), atol=1e-5)
    assert torch.allclose(routing.group_loss, group_norm(scores, backend="reference"), rtol=1e-5)


def test_non_contiguous(backend):
    wide = torch.randn(16, 80)
    noise = torch.randn(16, 40).t()
    for logits in (wide[:, :40].t(), wide.t()[::2], torch.randn(1, 16).expand(40, 16)):
        assert not logits.is_contiguous()
        a = route(logits, 2, noise=noise, backend=backend)
        b = route(logits.contiguous(), 2, noise=noise.contiguous(), backend=backend)
        assert torch.equal(a.weights, b.weights) and torch.equal(a.group_loss, b.group_loss)


def test_a_single_row_is_contiguous_whatever_its_stride(backend):
    logits, noise = torch.randn(4, 16)[::2][:1], torch.randn(4, 16)[::2][:1]
    assert logits.is_contiguous() and noise.stride(0) == 32
    a = route(logits, 2, noise=noise, backend=backend)
    b = route(logits.clone(), 2, noise=noise.clone(), backend=backend)
    assert torch.equal(a.weights, b.weights) and torch.equal(a.group_loss, b.group_loss)


def test_without_groups_there_is_no_loss_and_the_rest_is_the_same(backend):
    logits = torch.randn(20, 16)
    plain = route(logits, 2, group_size=None, backend=backend)
    grouped = route(logits, 2, backend=backend)
    assert plain.group_loss.item() == 0 and grouped.group_loss.item() > 0
    for name in ("weights", "experts", "importance", "load"):
        assert torch.equal(getattr(plain, name), getattr(grouped, name)), name


def test_what_ran_is_reported(backend):
    assert route(LOGITS, 2, backend=backend).backend == backend
    assert route(LOGITS, 2).backend == "extension"


def test_a_second_derivative_raises():
    logits = torch.randn(3, 16, requires_grad=True)
    loss = route(logits, 2, backend="extension").group_loss
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


TAPS = gaussian_taps(3, 1.0)


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("logits must have shape", {"logits": LOGITS[0]}),
        ("logits must be float32", {"logits": LOGITS.int()}),
        ("noise must have shape", {"noise": torch.zeros(4, 3)}),
        ("top_k must be from 1 to num_experts=16, got 17", {"choice": (17, 1, 0, 1, 1)}),
        ("choice must hold top_k, .* and top_groups, got 1 numbers", {"choice": (2,)}),
        ("score_function must be 0 .* got 3", {"choice": (2, 1, 3, 1, 1)}),
        ("num_groups must divide num_experts=16, got 3", {"choice": (2, 1, 0, 3, 1)}),
        ("num_groups must divide num_experts=16, got 0", {"choice": (2, 1, 0, 0, 1)}),
        ("top_groups must be at most num_groups=4, .* got 8", {"choice": (8, 1, 0, 4, 8)}),
        ("top_groups must .* divide top_k=2.* got 3", {"choice": (2, 1, 0, 4, 3)}),
        ("at most 1 experts of a range, got 1", {"choice": (2, 1, 0, 16, 1)}),
        ("groups must hold rows, .* and unit_energy, got 0", {"groups": ()}),
        ("bias must have shape", {"bias": torch.zeros(4)}),
        ("bias must be float32", {"bias": torch.zeros(16).int()}),
        ("mask must have shape", {"mask": torch.zeros(16).bool()}),
        ("mask must be [Bb]ool", {"mask": torch.zeros(4)}),
        ("rows \\* cols must equal num_experts=16, got 4 and 5", {"groups": (4, 5, 1, 0, 0, 0)}),
        ("rows \\* cols must equal", {"groups": (-4, -4, 1, 0, 0, 0)}),
        ("stride must be at least 1, got 0", {"groups": (4, 4, 0, 0, 0, 0)}),
        ("reduction must be 0 .* got 3", {"groups": (4, 4, 1, 0, 3, 0)}),
        ("taps must be float64", {"taps": TAPS.float()}),
        ("taps must be contiguous, of shape", {"taps": TAPS[:0]}),
        ("taps of length 5 do not fit the 4x4 map", {"taps": gaussian_taps(5, 1.0)}),
    ],
)
def test_the_op_itself_checks_what_memory_depends_on(match, change):
    arguments = {
        "logits": LOGITS, "noise": None, "taps": TAPS, "groups": (4, 4, 1, 0, 0, 0),
        "choice": (2, 1, 0, 1, 1), "strict": True,
    }  # fmt: skip
    torch.ops.moge.route(**arguments)
    with pytest.raises((ValueError, TypeError), match=match):
        torch.ops.moge.route(**(arguments | change))


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("experts must hold indices from 0 to 15", {"experts": torch.full((4, 2), 16)}),
        ("experts must hold indices from 0 to 15", {"experts": torch.full((4, 2), -1)}),
        ("experts must have shape", {"experts": torch.zeros(3, 2).long()}),
        ("experts must be long", {"experts": torch.zeros(4, 2)}),
        ("weights must have shape", {"weights": torch.zeros(4, 3)}),
        ("row_stats must have shape", {"row_stats": torch.zeros(4, 3)}),
        ("grad_weights must have shape", {"grad_weights": torch.zeros(4)}),
        ("grad_importance must have shape", {"grad_importance": torch.zeros(4)}),
        ("grad_loss must have shape", {"grad_loss": torch.zeros(4)}),
        ("mask must have shape", {"mask": torch.zeros(3).bool()}),
    ],
)
def test_the_backward_op_checks_too(match, change):
    arguments = {
        "grad_weights": torch.zeros(4, 2), "grad_importance": None, "grad_loss": None,
        "logits": LOGITS, "taps": TAPS, "experts": torch.zeros(4, 2).long(),
        "weights": torch.zeros(4, 2), "row_stats": torch.zeros(4, 2), "groups": (4, 4, 1, 0, 0, 0),
        "choice": (2, 1, 0, 1, 1),
    }  # fmt: skip
    torch.ops.moge.route_backward(**arguments)
    with pytest.raises((ValueError, TypeError), match=f"(?i){match}"):
        torch.ops.moge.route_backward(**(arguments | change))
