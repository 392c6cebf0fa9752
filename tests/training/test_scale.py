"""Averaged weights, float16's scaler, recomputed blocks: what large runs need, shown on small ones.

That a run with averaged weights is resumed exactly is in test_resume.py.
"""

import pytest
import torch
from accelerate.utils import AutocastKwargs

from moge_bench import TopographicRouter
from moge_bench.presets import resolve
from moge_bench.training.loop import train
from moge_bench.training.tasks import make_task
from moge_bench.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("few_images")

# A ViT of one token a quadrant, small enough that a step takes a hundredth of a second.
SHORT = {"training.steps": 3, "training.batch_size": 8, "training.warmup_steps": 1,
         "model.patch_size": 14, "model.hidden_size": 16, "model.num_heads": 2, "model.depth": 2,
         "model.ffn_size": 16, "moe.blocks": [1], "moe.num_experts": 9}  # fmt: skip


def trainer_of(method="moge", preset="tiny-vit", given=None, **overrides):
    config = resolve(preset, method, {**(SHORT if given is None else given), **overrides})
    task = make_task(config)
    return Trainer(config, task), [task.fixed_batch(config.training.batch_size)]


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_the_average_is_decay_old_plus_the_rest_new():
    trainer, batches = trainer_of(**{"training.ema_decay": 0.75})
    seen = []
    with trainer.in_force():
        for step in range(3):
            trainer.step(batches, step)
            seen.append(weights(trainer.model))
    # It starts as the weights after the first step; then a <- 0.75 a + 0.25 w, twice.
    with trainer.evaluated() as model:
        averages = weights(model)
    for average, first, second, third in zip(averages, *seen, strict=True):
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        assert torch.allclose(average, expected, rtol=1e-5, atol=1e-7)


def test_routers_of_the_average_follow_the_schedules():
    trainer, batches = trainer_of("moge-shuffled", **{"training.ema_decay": 0.5})
    with trainer.in_force():
        for step in range(2):
            trainer.step(batches, step)

    def routers(model):
        return [m for m in model.modules() if isinstance(m, TopographicRouter)]

    with trainer.evaluated() as model:
        pairs = list(zip(routers(trainer.model), routers(model), strict=True))
    assert pairs and all(mine is not theirs for mine, theirs in pairs)
    for mine, theirs in pairs:
        assert mine.sigma == theirs.sigma < 10  # 10 at the start
        assert torch.equal(mine.places, theirs.places)


def test_training_is_that_without_an_average_and_evaluation_is_not():
    evaluated = {**SHORT, "data.evaluate_test": False}
    plain, averaged = (
        train(resolve("tiny-vit", "moge", {**evaluated, "training.ema_decay": decay}))
        for decay in (None, 0.9)
    )
    assert averaged.curves == plain.curves
    assert averaged.metrics != plain.metrics


VIT = {**SHORT, "moe.capacity_factor": 1.0}
SWIN = {"training.batch_size": 4, "model.drop_path": 0.2}
LM = {"training.batch_size": 4, "model.context": 16, "model.dropout": 0.1,
      "data.tokenizer": "bytes"}  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "given"),
    [
        ("tiny-vit", VIT),
        ("tiny-swin", SWIN),
        ("tiny-swinv2", SWIN),
        ("tiny-lm", {**LM, "moe.bias_update_rate": 0.01}),
        ("tiny-lm", {**LM, "moe.residual.kind": "momentum"}),
    ],
)
def test_recomputed_blocks_change_no_number(preset, given):
    """Auxiliary losses enter once; noise, dropout and counts are those of the first pass."""
    results, ids = [], []
    for recomputes in (False, True):
        trainer, batches = trainer_of(
            preset=preset, given=given, **{"training.gradient_checkpointing": recomputes}
        )
        trainer.model.train()
        with trainer.in_force():
            losses = torch.stack(
                [trainer.step(batches, step, measures_dose=step == 1) for step in range(2)]
            )
        results.append([losses, *weights(trainer.model), *trainer.model.buffers()])
        ids.append(trainer.config.run_id)
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)
    assert ids[0] == ids[1]  # it is no other run


def with_scaler(trainer, scale):
    """Give the trainer the scaler that accelerate gives one of float16 on a GPU, in float32."""
    scaler, accelerator = torch.amp.GradScaler("cpu", init_scale=scale), trainer.accelerator
    accelerator.scaler, accelerator.native_amp = scaler, True
    accelerator.autocast_handler = AutocastKwargs(enabled=False)
    accelerator.state._mixed_precision = "fp16"  # so that gradients are unscaled to be clipped
    accelerator._optimizers.clear()
    with trainer.in_force():
        optimizer = trainer.accelerator.prepare_optimizer(trainer.optimizer.optimizer)
    assert optimizer.scaler is scaler
    trainer.optimizer = optimizer
    return trainer


def test_a_scaled_step_is_the_step():
    """A power of two scales without rounding; clipping and dose are of what is not scaled."""
    results = []
    for scale in (None, 2.0**10):
        trainer, batches = trainer_of()
        if scale:
            with_scaler(trainer, scale)
        with trainer.in_force():
            losses = trainer.step(batches, 0, measures_dose=True)
        results.append((losses, trainer.doses[0]["group"], *weights(trainer.model)))
    for plain, scaled in zip(*results, strict=True):
        assert torch.equal(plain, scaled)


def test_a_step_whose_gradient_overflows_is_left_out():
    trainer, batches = trainer_of()
    with_scaler(trainer, 2.0**127)  # the largest float32 is below 2^128
    before = weights(trainer.model)
    with trainer.in_force():
        losses = trainer.step(batches, 0)
    assert torch.isfinite(losses).all()  # no divergence: they are not scaled
    assert all(map(torch.equal, before, weights(trainer.model)))
    assert trainer.accelerator.scaler.get_scale() == 2.0**126


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match=r"'fp16' needs device='cuda'.*take 'bf16' or 'no'"):
        resolve("tiny-vit", "moge", {"training.precision": "fp16"})
    assert resolve("tiny-vit", "moge", {"training.precision": "fp16", "device": "cuda"})


def test_the_router_is_in_float32_under_float16():
    router = TopographicRouter(8, 4)
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.float16):
        assert router(x).logits.dtype == torch.float32
    assert router.half()(x.half()).logits.dtype == torch.float32
