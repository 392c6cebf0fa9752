import pytest
import torch

from moge_bench import GroupNorm, SigmaSchedule, TopographicRouter


def test_published_values_of_10_to_1_with_gamma_02():
    schedule = SigmaSchedule(10.0, 1.0, 0.2, total_steps=100)
    # docs/method.md: 10 at t=0; 10 - 9 * 0.01^0.2 = 10 - 9 * 0.39811 = 6.417 at 1 %; and so on.
    expected = {0: 10.0, 1: 6.42, 10: 4.32, 25: 3.18, 50: 2.17, 100: 1.0}
    for step, sigma in expected.items():
        assert schedule.sigma(step) == pytest.approx(sigma, abs=0.005)


def test_clamped_after_the_end():
    schedule = SigmaSchedule(10.0, 1.5, 0.3, total_steps=7)
    assert schedule.sigma(7) == schedule.sigma(10**9) == 1.5


def test_apply_sets_routers_that_have_groups_and_no_others():
    grouped, plain = TopographicRouter(4, 16), TopographicRouter(4, 16, group_size=None)
    module = torch.nn.ModuleList([grouped, plain])
    assert SigmaSchedule(10.0, 2.0, 1.0, total_steps=4).apply(module, 1) == 8.0
    assert grouped.sigma == 8.0
    assert plain.sigma == 1.0


def test_apply_without_a_router_that_has_groups_is_an_error():
    plain = TopographicRouter(4, 16, group_size=None)
    with pytest.raises(ValueError, match=r"TopographicRouter has none: .* change nothing"):
        SigmaSchedule(total_steps=4).apply(plain, 1)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"start": 0.0}, "start"),
        ({"end": -1.0}, "end"),
        ({"gamma": float("nan")}, "gamma"),
        ({"total_steps": 0}, "total_steps"),
    ],
)
def test_errors_name_the_argument(arguments, name):
    with pytest.raises(ValueError, match=rf"{name} must be .*got"):
        SigmaSchedule(**{"total_steps": 1, **arguments})


def test_negative_step():
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        SigmaSchedule(total_steps=3).sigma(-1)


def test_apply_sets_group_norm_modules():
    module = torch.nn.Sequential(GroupNorm(3, 1.0), torch.nn.Linear(2, 2))
    assert SigmaSchedule(10.0, 2.0, 1.0, total_steps=4).apply(module, 1) == 8.0
    assert module[0].sigma == 8.0
