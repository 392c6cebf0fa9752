"""GroupNorm: the loss as a module; what becomes of its filter when the module is moved or saved."""

import copy
import io
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from moge_bench import GroupNorm, group_norm

SCORES = torch.softmax(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), -1)
OPTIONS = {"map_shape": (2, 8), "stride": 2, "border": "torus", "reduction": "official_image"}


@pytest.mark.parametrize("backend", ["reference", "extension"])
@pytest.mark.parametrize("sigma", [1.0, 4.0, None])
@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_it_is_group_norm(sigma, options, backend):
    module = GroupNorm(2, sigma, backend=backend, **options)
    expected = group_norm(SCORES, group_size=2, sigma=sigma, backend=backend, **options)
    assert torch.equal(module(SCORES), expected)
    mask = torch.tensor([True, False, True, True, False])
    expected = group_norm(SCORES, group_size=2, sigma=sigma, backend=backend, mask=mask, **options)
    assert torch.equal(module(SCORES, mask), expected)


def wide() -> GroupNorm:
    """A module whose sigma is not the one it was made with: 4 after 1."""
    module = GroupNorm()
    module.set_sigma(4.0)
    return module


def loss(sigma):
    return group_norm(SCORES, group_size=3, sigma=sigma)


def test_set_sigma():
    module = wide()
    assert module.sigma == 4.0 and torch.equal(module(SCORES), loss(4.0))
    module.set_sigma(None)
    assert module.sigma is None and torch.equal(module(SCORES), loss(None))
    assert not torch.equal(loss(4.0), loss(None))


@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.half(),
        lambda module: module.to("meta"),
        lambda module: module.to_empty(device="cpu"),
        lambda module: torch.nn.Sequential(module).to(torch.bfloat16)[0],
        copy.deepcopy,
        lambda module: _through_a_file(module),
    ],
    ids=["bfloat16", "half", "meta", "to_empty", "inside", "deepcopy", "pickle"],
)
def test_the_filter_stays_as_it_is(move):
    module = move(wide())
    assert torch.equal(module(SCORES), loss(4.0))
    assert {taps.dtype for taps in module._taps.values()} == {torch.float64}
    module.set_sigma(2.0)
    assert torch.equal(module(SCORES), loss(2.0))


def _through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_copy_has_its_own_filter():
    module = wide()
    copy.deepcopy(module).set_sigma(1.0)
    assert torch.equal(module(SCORES), loss(4.0))


@pytest.mark.parametrize("sigma", [4.0, None])
def test_sigma_is_in_the_state_dict(sigma):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), GroupNorm(sigma=sigma))
    state = model.state_dict()
    assert list(state) == ["0.weight", "0.bias", "1.sigma"]
    assert state["1.sigma"].dtype == torch.float64 and state["1.sigma"].shape == ()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = torch.nn.Sequential(torch.nn.Linear(2, 2), GroupNorm(sigma=1.0))
    assert other.load_state_dict(torch.load(file)).unexpected_keys == []
    assert other[1].sigma == sigma and torch.equal(other[1](SCORES), loss(sigma))


def test_a_state_dict_that_does_not_fit():
    module = GroupNorm()
    with pytest.raises(RuntimeError, match=r"Missing key.*sigma"):
        module.load_state_dict({})
    assert module.load_state_dict({}, strict=False).missing_keys == ["sigma"]
    with pytest.raises(RuntimeError, match="sigma must be positive and finite"):
        module.load_state_dict({"sigma": torch.tensor(-1.0)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*taps"):
        module.load_state_dict({"sigma": torch.tensor(1.0), "taps": torch.ones(3)})
    assert module.sigma == 1.0


def test_a_schedule_is_one_compilation():
    module, counter = GroupNorm(sigma=10.0), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    for step in range(12):
        sigma = 10.0 - 9.0 * math.sqrt(step / 11)
        module.set_sigma(sigma)
        torch.testing.assert_close(compiled(SCORES), loss(sigma), rtol=1e-6, atol=0)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("group_size must be an int >= 1, got 0", {"group_size": 0}),
        ("group_size must be an int >= 1, got 'auto'", {"group_size": "auto"}),
        ("sigma must be positive", {"sigma": 0.0}),
        ("stride must be at least 1", {"stride": 0}),
        ("border must be one of", {"border": "wrap"}),
        ("reduction must be one of", {"reduction": "mean"}),
    ],
)
def test_wrong_settings_are_refused_at_once(match, options):
    with pytest.raises(ValueError, match=match):
        GroupNorm(**options)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"map_shape=\(3, 5\) does not hold num_experts=16", {"map_shape": (3, 5)}),
        ("map_shape must be two ints", {"map_shape": (16,)}),
        ("group_size=5 does not fit the 4x4 map", {"group_size": 5}),
        ("nonfinite must be one of", {"nonfinite": "skip"}),
        ("backend must be one of", {"backend": "fast"}),
    ],
)
def test_wrong_settings_are_refused_in_a_call(match, options):
    with pytest.raises((ValueError, TypeError), match=match):
        GroupNorm(**options)(SCORES)


@pytest.mark.parametrize(
    ("scores", "error", "match"),
    [
        ([[0.5, 0.5]], TypeError, "scores must be a torch.Tensor, got list"),
        (torch.rand(16), ValueError, r"scores must have shape \(num_tokens, num_experts\)"),
        (torch.rand(2, 3, 16), ValueError, r"got \(2, 3, 16\); flatten batch and sequence first"),
    ],
)
def test_wrong_scores_are_named(scores, error, match):
    with pytest.raises(error, match=match):
        GroupNorm()(scores)


def test_unit_energy_is_a_setting():
    scores = torch.rand(5, 16)
    expected = group_norm(scores, unit_energy=True)
    assert torch.equal(GroupNorm(unit_energy=True)(scores), expected)


def test_taps_of_every_device_are_kept_and_follow_sigma():
    """A CUDA graph reads those that lay there when it was captured, whatever came between."""
    module, scores = GroupNorm(sigma=1.0), torch.rand(4, 16)
    other = torch.device("cuda", 0)
    of_graph = module._taps[other] = module._taps[torch.device("cpu")].clone()
    module(scores)
    module.set_sigma(2.0)
    module(scores)
    assert module._taps[other] is of_graph
    assert torch.equal(of_graph, GroupNorm(sigma=2.0)._taps[torch.device("cpu")])


def test_sigma_is_set_as_set_sigma_sets_it():
    module = GroupNorm(2, 1.0)
    module.sigma = 4.0
    assert module.sigma == 4.0 and torch.equal(module(SCORES), GroupNorm(2, 4.0)(SCORES))
    with pytest.raises(ValueError, match="sigma must be positive"):
        module.sigma = -1.0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_module_that_was_loaded_for_another_device_has_its_filter(device):
    """torch.load(map_location=...) moves tensors, not the devices that they are kept by."""
    file = io.BytesIO()
    torch.save(wide(), file)
    file.seek(0)
    loaded = torch.load(file, map_location=device, weights_only=False)
    assert [taps.device for taps in loaded._taps.values()] == [*loaded._taps]
    assert torch.equal(loaded(SCORES), wide()(SCORES))
