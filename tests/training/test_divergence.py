import math

import pytest

from moge_bench.presets import resolve
from moge_bench.training import loop
from moge_bench.training.divergence import Diverged, DivergenceWatch
from moge_bench.training.loop import train
from moge_bench.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("few_images")


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


LOST = {"training.steps": 20, "training.learning_rate": 100.0, "training.warmup_steps": 0,
        "training.schedule": "constant", "training.clip_norm": None}  # fmt: skip


@pytest.mark.parametrize("method", ["dense", "moge"])
def test_losses_that_are_read_seldom_tell_the_same_step_and_curve(method, monkeypatch):
    """As on a GPU: the steps after a divergence are made, and leave no trace."""
    config = resolve("tiny-vit", method, LOST)
    expected = train(config)
    assert 1 < expected.diverged_at < 20
    monkeypatch.setattr(loop, "_read_every", lambda device: 20)
    assert train(config) == expected


def test_a_divergence_is_the_reason_of_what_breaks_after_it(monkeypatch):
    config = resolve("tiny-vit", "dense", {"training.steps": 4, "training.batch_size": 8})
    step, made = Trainer.step, []

    def breaking(self, batches, index, **options):
        made.append(index)
        if index == 2:
            raise RuntimeError("of NaN")
        losses = step(self, batches, index, **options)
        return losses.fill_(math.nan) if index == 1 else losses

    monkeypatch.setattr(Trainer, "step", breaking)
    monkeypatch.setattr(loop, "_read_every", lambda device: 20)
    assert train(config).diverged_at == 2 and made == [0, 1, 2]


def test_nothing_unchecked_is_saved(monkeypatch, tmp_path):
    """A checkpoint is due after every step: the losses before it are read first."""
    config = resolve("tiny-vit", "moe", LOST)
    expected, path, saved = train(config), tmp_path / "state", []
    save = loop.save_checkpoint

    def watched(path, step, *rest):
        saved.append(step)
        save(path, step, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", watched)
    monkeypatch.setattr(loop, "_read_every", lambda device: 20)
    assert train(config, checkpoint=path, checkpoint_every_s=0.0) == expected
    assert saved == list(range(1, expected.diverged_at))


def test_a_run_that_diverges_keeps_its_curve_and_has_no_result():
    result = train(resolve("tiny-vit", "dense", LOST))
    assert 1 < result.diverged_at <= 20
    assert (result.metrics, result.routing) == ([], [])
    assert result.curves[0]["step"] == 1
