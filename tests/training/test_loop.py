import math

import pytest
import torch

from moge_bench import TopographicRouter
from moge_bench.presets import resolve
from moge_bench.training import image_task
from moge_bench.training.loop import train
from moge_bench.training.optimizer import learning_rate_factor
from moge_bench.training.tasks import make_task
from moge_bench.training.trainer import Trainer, TrainingStep

pytestmark = pytest.mark.usefixtures("few_images")

SHORT = {"training.steps": 6, "training.batch_size": 32, "training.warmup_steps": 2}


def run(method, seed=0, **overrides):
    return train(resolve("tiny-vit", method, {**SHORT, **overrides}, seed))


@pytest.fixture(scope="module")
def moge(few_images):
    return run("moge")


def test_same_config_gives_the_same_result_bit_for_bit(moge):
    assert run("moge") == moge


def test_seed_changes_the_result(moge):
    assert run("moge", seed=1).metrics != moge.metrics


def test_lambda_zero_trains_plain_moe_bit_for_bit():
    plain, zero = run("moe"), run("moge", **{"moe.group.weight": 0.0})
    assert zero.metrics == plain.metrics
    assert zero.curves == plain.curves
    assert [layer["load"] for layer in zero.routing] == [layer["load"] for layer in plain.routing]


def test_lambda_above_zero_changes_training(moge):
    assert run("moe").curves != moge.curves


def test_result_names_backends_and_gradients(moge):
    assert set(moge.backends) == {"route", "experts"}
    assert len(moge.checks["group_gradient_norms"]) == 2
    assert all(norm > 0 for norm in moge.checks["group_gradient_norms"])
    assert run("moe").checks["group_gradient_norms"] == []
    assert run("dense").backends == {}


def test_dead_group_loss_stops_the_run(monkeypatch):
    """The published failure: an auxiliary loss that is logged but trains nothing."""
    from moge_bench.routing import router

    original = router.route_with_taps

    def detached(*args, **kwargs):
        routing = original(*args, **kwargs)
        routing.group_loss = routing.group_loss.detach()
        return routing

    monkeypatch.setattr(router, "route_with_taps", detached)
    with pytest.raises(RuntimeError, match=r"group loss has gradient norm 0\.0 at the gate"):
        run("moge")


def test_test_split_is_read_only_when_asked_for(moge):
    assert {metric.split for metric in moge.metrics} == {"validation", "test"}
    blind = run("moge", **{"data.evaluate_test": False})
    assert {metric.split for metric in blind.metrics} == {"validation"}


def test_accumulated_micro_batches_make_the_same_step():
    """Dense has no batch-dependent loss: two halves must give the gradient of the whole.

    But for batch norm; and augmentation draws the flips of a micro-batch, then its crops.
    """
    given = {"training.steps": 2, "model.stem": "patch", "data.flip": False, "data.crop_padding": 0}
    whole = run("dense", **given).metrics
    halves = run("dense", **given, **{"training.gradient_accumulation": 2}).metrics
    for a, b in zip(whole, halves, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-4)


def test_selection_bias_moves_once_a_step_of_several_micro_batches():
    config = resolve("tiny-vit", "moe", {
        "training.steps": 4, "training.batch_size": 16, "training.gradient_accumulation": 4,
        "moe.bias_update_rate": 0.01,
    })  # fmt: skip
    task = make_task(config)
    trainer = Trainer(config, task)
    with trainer.in_force():
        trainer.step([task.fixed_batch(4)] * 4, 0)
    routers = [m for m in trainer.model.modules() if isinstance(m, TopographicRouter)]
    moved = [float(router.selection_bias.abs().max()) for router in routers]
    assert moved == pytest.approx([0.01, 0.01])  # one for each MoE layer of tiny-vit


def test_learning_rate_warms_up_and_decays():
    settings = resolve("tiny-vit", "dense", {
        "training.steps": 12, "training.warmup_steps": 2,
        "training.learning_rate": 1e-2, "training.final_learning_rate": 1e-3,
    }).training  # fmt: skip
    factors = [learning_rate_factor(settings, step) for step in (0, 1, 2, 7, 12)]
    # Warm-up 1/2, 2/2; then f + (1 - f) (1 + cos(pi p)) / 2 with f = 0.1 and p = 0, 1/2, 1.
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.1 + 0.9 * 0.5, 0.1])


def test_learns():
    """30 steps take the loss well below that of guessing, ln 10 = 2.303."""
    result = run("moge", **{"training.steps": 30, "training.batch_size": 64})
    assert result.curves[-1]["value"] < math.log(10) - 0.5


def test_a_loss_that_is_not_finite_is_a_divergence(monkeypatch):
    monkeypatch.setattr(
        image_task.F, "cross_entropy", lambda logits, labels, **_: logits.sum() * torch.nan
    )
    result = run("dense")
    assert (result.diverged_at, result.metrics) == (1, [])


def test_training_step_counts_tokens_and_updates():
    config = resolve("tiny-vit", "moge", SHORT)
    step = TrainingStep(config, make_task(config))
    assert step.tokens_per_step == 32 * 17  # 17 tokens an image
    before = [p.detach().clone() for p in step._trainer.model.parameters()]
    step()
    after = list(step._trainer.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_scoring_leaves_weights_and_mode_alone():
    config = resolve("tiny-vit", "moge", SHORT)
    step = TrainingStep(config, make_task(config))
    before = [p.detach().clone() for p in step._trainer.model.parameters()]
    step.score()
    after = list(step._trainer.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    assert step._trainer.model.training
