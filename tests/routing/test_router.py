import io
import warnings

import numpy as np
import pytest
import torch

from moge_bench import GroupNorm, MoELayer, TopographicRouter, group_norm, route
from moge_bench.ops.extension import warn_once
from moge_bench.routing import router as router_module


def make(**settings):
    torch.manual_seed(0)
    return TopographicRouter(8, **{"num_experts": 16, **settings})


def test_logits_are_float32_under_bfloat16_weights_and_autocast():
    router, x = make(), torch.randn(5, 8)
    assert router.to(torch.bfloat16).logits(x.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        logits = make().logits(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, make().logits(x))


@pytest.mark.parametrize("move", [
    lambda router: router.to(torch.bfloat16), lambda router: router.half(),
    lambda router: router.to("meta"), lambda router: router.to("meta").to_empty(device="cpu"),
])  # fmt: skip
def test_moving_the_model_leaves_the_filter_exact(move):
    router = make(sigma=1.3)
    taps = router._taps
    assert move(router)._taps is taps and taps.dtype == torch.float64


def test_set_sigma_changes_the_loss_like_a_fresh_router():
    x, router = torch.randn(6, 8), make(sigma=10.0)
    router.set_sigma(0.7)
    assert torch.equal(router(x).group_loss, make(sigma=0.7)(x).group_loss)
    assert not torch.equal(router(x).group_loss, make(sigma=10.0)(x).group_loss)


def test_set_sigma_without_groups():
    with pytest.raises(ValueError, match="group_size=None"):
        make(group_size=None).set_sigma(1.0)


def test_noise_changes_selection_in_training_only():
    x = torch.randn(512, 8)
    router = make(noise=True, num_experts=4, group_size=2)
    clean = make(num_experts=4, group_size=2)(x)
    assert not torch.equal(router(x).experts, clean.experts)
    assert torch.equal(router.eval()(x).experts, clean.experts)


def test_noise_does_not_enter_scores_or_loss():
    x = torch.randn(64, 8)
    noisy, clean = make(noise=True)(x), make()(x)
    assert torch.equal(noisy.scores, clean.scores)
    assert torch.equal(noisy.group_loss, clean.group_loss)


def test_noise_is_standard_normal_over_num_experts():
    router = make(noise=True)
    noise = router(torch.randn(4096, 8)).noise
    # 65536 draws: the standard error of the standard deviation is 1/16 / sqrt(2 * 65536) = 0.00017.
    assert float(noise.std()) == pytest.approx(1 / 16, abs=0.001)
    assert float(noise.mean()) == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 17}, "top_k must be from 1 to num_experts=16, got 17"),
        ({"top_k": 0}, "top_k must be from 1 to num_experts=16, got 0"),
        ({"num_experts": 1025}, "num_experts must be an int from 1 to 1024, got 1025"),
        ({"group_size": 5}, "group_size=5 does not fit the 4x4 map.*largest that fits is 4"),
        ({"map_shape": (3, 5)}, r"map_shape=\(3, 5\) does not hold num_experts=16.*\(4, 4\)"),
        ({"border": "wrap"}, r"border must be one of \('valid', 'torus'\), got 'wrap'"),
        ({"reduction": "sum"}, "reduction must be one of .*got 'sum'"),
        ({"sigma": 0.0}, "sigma must be positive and finite.*got 0.0"),
    ],
)
def test_construction_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_wrong_input_shape_names_both():
    with pytest.raises(ValueError, match=r"hidden_size=8.*got \(2, 3, 8\)"):
        make()(torch.randn(2, 3, 8))


@pytest.mark.filterwarnings("ignore:group_size='auto'")
def test_default_group_is_the_largest_up_to_3_that_fits():
    # 16 -> 4x4 holds 3x3; 8 -> 2x4 holds 2x2; 7 -> 1x7 holds 1x1; a torus holds any.
    sizes = [make(num_experts=n).group_size for n in (16, 8, 7)]
    assert sizes == [3, 2, 1]
    assert make(num_experts=8, border="torus").group_size == 3
    with pytest.raises(ValueError, match="group_size=3 does not fit the 2x4 map"):
        make(num_experts=8, group_size=3)


def test_default_group_below_3_is_said():
    with pytest.warns(RuntimeWarning, match="group_size='auto' is 2 here.*2x6 map of 12"):
        make(num_experts=12, map_shape=(2, 6))  # a map of its own: each message is said once


def test_mask_gives_the_tokens_that_count_what_they_get_alone():
    router, x = make(), torch.randn(40, 8)
    mask = torch.rand(40) > 0.4
    x[~mask] = torch.nan
    padded, alone = router(x, mask), router(x[mask])
    assert torch.equal(padded.experts[mask], alone.experts)
    assert torch.equal(padded.load, alone.load)
    padded.weights.sum().backward()
    assert torch.isfinite(router.gate.weight.grad).all()


def test_state_dict_holds_gate_and_bias_and_no_sigma():
    """Sigma is a function of the step, so MoE and MoGE have one state dict."""
    grouped, plain = make(sigma=5.0), make(group_size=None)
    assert list(grouped.state_dict()) == ["selection_bias", "gate.weight"]
    grouped.load_state_dict(plain.state_dict())
    assert grouped.sigma == 5.0


def test_settings_reach_the_routing():
    x = torch.randn(30, 8)
    options = {
        "score_function": "sigmoid", "num_groups": 4, "top_groups": 2, "scale": 2.5,
        "unit_energy": True, "renormalize": False,
    }  # fmt: skip
    router = make(**options)
    got, wanted = router(x), route(router.logits(x), 2, **options)
    for name in ("weights", "experts", "importance", "group_loss", "scores"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    with pytest.raises(ValueError, match="top_groups must be at most num_groups=1"):
        make(top_groups=2)


def test_places_take_the_group_loss_alone():
    x, mask = torch.randn(30, 8), torch.arange(30) > 4
    plain, router = make(), make(shuffled=True)
    torch.testing.assert_close(router(x, mask).group_loss, plain(x, mask).group_loss)
    router.shuffle_places(torch.Generator().manual_seed(3))
    got, wanted = router(x, mask), plain(x, mask)
    for name in ("weights", "experts", "importance", "load", "scores"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    places = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(router.places, places)
    expected = group_norm(wanted.scores[:, places], mask=mask)
    assert torch.equal(got.group_loss, expected)
    assert not torch.equal(got.group_loss, wanted.group_loss)
    assert got.group_loss.requires_grad


def test_places_are_changed_in_place_and_are_no_state():
    router = make(shuffled=True)
    places = router.places
    assert set(router.state_dict()) == set(make().state_dict())
    for move in (lambda r: r.bfloat16(), lambda r: r.to("meta").to_empty(device="cpu")):
        assert move(router).places is places
    router.shuffle_places(torch.Generator())
    assert router.places is places and not torch.equal(places, torch.arange(16))
    router.reset_parameters()
    assert torch.equal(places, torch.arange(16))


def test_compiled_router_takes_new_places_and_is_not_compiled_again():
    router, x = make(shuffled=True, unit_energy=True), torch.randn(30, 8)
    compiled = torch.compile(lambda x: router(x).group_loss, backend="aot_eager", fullgraph=True)
    losses = set()
    for seed in range(3):
        router.shuffle_places(torch.Generator().manual_seed(seed))
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            losses.add(compiled(x).item())
        assert compiled(x).item() == router(x).group_loss.item()
    assert len(losses) == 3


def test_places_of_a_router_that_has_none():
    with pytest.raises(ValueError, match="shuffled=False: its experts keep their places"):
        make().shuffle_places(torch.Generator())
    with pytest.raises(ValueError, match="shuffled=True needs groups"):
        make(shuffled=True, group_size=None)


def test_a_router_of_one_renormalised_choice_is_told():
    warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="the router gets no gradient of the task"):
        router = make(top_k=1)
    router(torch.randn(5, 8)).weights.square().sum().backward()
    assert router.gate.weight.grad.abs().max() < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warn_once.cache_clear()
        router = make(top_k=1, renormalize=False)
    router(torch.randn(5, 8)).weights.square().sum().backward()
    assert router.gate.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize(("name", "value"), [
    ("noise", 0.1), ("shuffled", "no"), ("renormalize", "false"), ("renormalize", None),
])  # fmt: skip
def test_flags_are_true_or_false(name, value):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got {value!r}"):
        make(**{name: value})


def test_sigma_is_set_as_set_sigma_sets_it_and_top_k_is_not():
    router, x = make(sigma=1.0), torch.randn(5, 8)
    router.sigma = 0.5
    assert router.sigma == 0.5
    assert torch.equal(router(x).group_loss, make(sigma=0.5)(x).group_loss)
    with pytest.raises(AttributeError):
        router.top_k = 1
    with pytest.raises(ValueError, match="group_size=None"):
        make(group_size=None).sigma = 0.5


def test_the_filter_follows_the_gate(monkeypatch):
    """FSDP and accelerate move parameters and buffers alone; meta stands for where they were."""
    router, x = make(shuffled=True), torch.randn(5, 8)
    expected, there = router(x).group_loss, {t.dtype: t for t in (router._taps, router.places)}
    router._taps, router.places = router._taps.to("meta"), router.places.to("meta")
    moved = []
    monkeypatch.setattr(
        router_module, "moved_taps", lambda t, device: moved.append(device) or there[t.dtype]
    )
    assert torch.equal(router(x).group_loss, expected) and torch.equal(
        router(x).group_loss, expected
    )
    assert moved == [x.device, x.device]  # once each


def test_counts_of_a_router_from_the_meta_device_begin_at_zero():
    with torch.device("meta"):
        router = make(bias_update_rate=0.1)
    router.to_empty(device="cpu").load_state_dict(make(bias_update_rate=0.1).state_dict())
    assert torch.equal(router.take_load_counts(), torch.zeros(16, dtype=torch.int64))


@pytest.mark.parametrize("hidden_size", ["8", 8.0, True])
def test_the_hidden_size_is_an_int(hidden_size):
    with pytest.raises(TypeError, match=f"hidden_size must be an int, got {hidden_size!r}"):
        TopographicRouter(hidden_size, 16)


def test_numbers_and_flags_of_numpy_are_taken():
    router = TopographicRouter(np.int64(8), 16, renormalize=np.bool_(False), noise=np.bool_(True))
    assert type(router.hidden_size) is int and not router.choice.renormalize
    assert router(torch.randn(5, 8)).weights.shape == (5, 2)


@pytest.mark.parametrize("kind", [make, GroupNorm])
def test_a_module_that_was_pickled_with_another_name_of_sigma(kind):
    """Up to 2026-11-28 sigma was an attribute."""
    module = kind(sigma=2.0)
    state = {"sigma" if name == "_sigma" else name: v for name, v in module.__dict__.items()}
    old = type(module).__new__(type(module))
    old.__setstate__(state)
    assert old.sigma == 2.0 and "sigma=2.0" in repr(old)


def test_a_subclass_may_set_sigma_in_set_sigma():
    class Own(TopographicRouter):
        def set_sigma(self, sigma):
            super().set_sigma(sigma)
            self.sigma = sigma

    router = Own(8, 16)
    router.set_sigma(0.5)
    assert router.sigma == 0.5


def test_a_router_of_the_meta_device_makes_its_filter_anew():
    router, file, x = make(shuffled=True), io.BytesIO(), torch.randn(5, 8)
    torch.save(router, file)
    file.seek(0)
    loaded = torch.load(file, map_location="meta", weights_only=False).to_empty(device="cpu")
    loaded.load_state_dict(router.state_dict())
    assert torch.equal(loaded(x).group_loss, router(x).group_loss)


def test_tokens_are_a_tensor():
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        make()([[0.0] * 8])
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got NoneType"):
        MoELayer(8, 8, num_experts=4)(None)
