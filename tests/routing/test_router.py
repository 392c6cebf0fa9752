import pytest
import torch

from moge_bench import TopographicRouter


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


def test_casting_the_model_leaves_the_filter_exact():
    router = make(sigma=1.3)
    before = router._taps.clone()
    router.to(torch.bfloat16)
    assert torch.equal(router._taps, before)


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


def test_selection_bias_moves_against_the_load_and_does_not_touch_weights():
    x = torch.randn(256, 8)
    router = make(bias_update_rate=0.01, group_size=None)
    first = router(x)
    mean = first.load.double().mean()
    moved = router.selection_bias
    assert torch.equal(moved, 0.01 * torch.sign(mean - first.load).float())
    for _ in range(200):
        last = router(x)
    assert last.load.double().std() < first.load.double().std() / 2
    chosen = last.scores.gather(1, last.experts)
    torch.testing.assert_close(last.weights, chosen / chosen.sum(1, keepdim=True))
    before = router.selection_bias.clone()
    router.eval()(x)
    assert torch.equal(router.selection_bias, before)


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


def test_state_dict_round_trip():
    router = make(bias_update_rate=0.1)
    router(torch.randn(32, 8))
    other = make(bias_update_rate=0.1)
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.selection_bias, router.selection_bias)
