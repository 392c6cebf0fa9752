import math

import pytest

from moge_bench.presets import resolve
from moge_bench.training.divergence import Diverged, DivergenceWatch
from moge_bench.training.loop import train


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_at_once(loss):
    with pytest.raises(Diverged, match=f"step 4: the training loss is {loss}") as caught:
        DivergenceWatch(100).check(4, loss)
    assert caught.value.step == 4


def test_three_times_the_start_for_one_step_in_twenty():
    # 40 steps: 5 % are 2 in a row above 3 * 2.0 = 6.
    watch = DivergenceWatch(40)
    for step, loss in enumerate([2.0, 6.1, 6.0, 6.1], start=1):
        watch.check(step, loss)
    with pytest.raises(Diverged, match=r"above 3 times its start, 2, for 2 steps in a row"):
        watch.check(5, 7.0)


def test_a_run_that_diverges_keeps_its_curve_and_has_no_result():
    settings = {"training.steps": 20, "training.learning_rate": 100.0, "training.warmup_steps": 0,
                "training.schedule": "constant", "training.clip_norm": None}  # fmt: skip
    result = train(resolve("tiny-vit", "dense", settings))
    assert 1 < result.diverged_at <= 20
    assert (result.metrics, result.routing) == ([], [])
    assert result.curves[0]["step"] == 1
