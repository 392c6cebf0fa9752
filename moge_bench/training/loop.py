"""One training loop for every model, on accelerate: one CPU core to many devices, same code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from moge_bench.config import RunConfig, TrainingConfig
from moge_bench.models.build import build_model, count_parameters
from moge_bench.moe.insert import collect_aux
from moge_bench.moe.layer import MoEAux
from moge_bench.routing.schedule import SigmaSchedule
from moge_bench.routing.selection_bias import update_selection_bias
from moge_bench.training.allocator import keep_freed_memory
from moge_bench.training.evaluate import Metric, evaluating
from moge_bench.training.gradient_check import check_gradients
from moge_bench.training.task import Batch, Task
from moge_bench.training.tasks import make_task

_CURVE_POINTS = 50


@dataclass
class RunResult:
    """What one run measured; a record is this and where it came from.

    ``backends`` maps an op to the backend that really ran; ``checks`` holds the liveness check.
    """

    metrics: list[Metric] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    routing: list[dict[str, Any]] = field(default_factory=list)
    backends: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Return the factor on the peak rate: linear warm-up, then constant or a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    span = max(config.steps - config.warmup_steps, 1)
    final = config.final_learning_rate / config.learning_rate
    cosine = (1 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1.0))) / 2
    return final + (1 - final) * cosine


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW; biases and norms (one value a channel) are not decayed."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_bias = parameter.dim() < 2 or name.rsplit(".", 1)[-1].startswith("b_")
        (plain if is_bias else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


class Trainer:
    """Model, optimiser and schedules of one run; ``step`` makes one optimiser step."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        torch.set_num_threads(config.training.threads)
        keep_freed_memory()
        self.config, self.task = config, task
        self.accelerator = Accelerator(
            mixed_precision=config.training.precision,
            # An epoch's end must not cut a step short: every step sees the same number of images.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=config.training.gradient_accumulation, sync_with_dataloader=False
            ),
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        model = build_model(config, task.vocabulary_size)
        self.parameters = count_parameters(model)
        optimizer = make_optimizer(model, config.training)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.sigma_schedule: SigmaSchedule | None = None
        if config.moe is not None and config.moe.group is not None:
            sigma = config.moe.group.sigma
            self.sigma_schedule = SigmaSchedule(
                sigma.start, sigma.end, sigma.gamma, total_steps=config.training.steps
            )
        self.backends: dict[str, str] = {}
        self.checks: dict[str, Any] = {}
        torch.manual_seed(config.seed)  # from here on: dropout and gate noise

    def step(self, batches: list[Batch], index: int) -> float:
        """Make optimiser step ``index`` from its micro-batches; return the mean task loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.training.learning_rate * learning_rate_factor(
                self.config.training, index
            )
        if self.sigma_schedule is not None:
            self.sigma_schedule.apply(self.model, index)
        total = 0.0
        for batch in batches:
            total += self._accumulate(batch)
        if self.config.moe is not None and self.config.moe.bias_update_rate:
            update_selection_bias(self.model)
        return total / len(batches)

    def _accumulate(self, batch: Batch) -> float:
        """Add the gradient of one micro-batch; the last one of a step also updates the weights."""
        config = self.config.training
        with self.accelerator.accumulate(self.model):
            with collect_aux(self.model) as auxes, self.accelerator.autocast():
                task = self.task.loss(self.model, batch)
            self._first_time(auxes)
            # METHOD.md "Total objective": the sum runs over the MoE layers.
            loss = sum((aux.loss for aux in auxes), start=task)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the training loss is {loss.item()}; lower the rate?")
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and config.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(task.detach())

    def _first_time(self, auxes: list[MoEAux]) -> None:
        if auxes and not self.backends:
            self.backends = {"route": auxes[0].routing.backend, "experts": auxes[0].experts_backend}
            self.checks = check_gradients(self.accelerator.unwrap_model(self.model), auxes)


def _micro_batches(loader: Any, per_step: int) -> Iterator[list[Batch]]:
    """Yield lists of ``per_step`` batches for ever, epoch after epoch."""
    pending: list[Batch] = []
    while True:
        for batch in loader:
            pending.append(batch)
            if len(pending) == per_step:
                yield pending
                pending = []


def train(config: RunConfig, on_step: Callable[[int, int], None] | None = None) -> RunResult:
    """Train and evaluate one run; ``on_step(done, total)`` is called after every step.

    The result depends on the config (seed and threads included) and the machine alone. The test
    split is read once, at the end, and only where ``data.evaluate_test`` says so.
    """
    torch.use_deterministic_algorithms(True)
    # Else determinism writes NaN into every empty tensor first: 7 % of a step of tiny-lm.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    settings = config.training
    trainer = Trainer(config, make_task(config))
    loader = trainer.accelerator.prepare(
        trainer.task.loader(settings.batch_size // settings.gradient_accumulation, config.seed)
    )
    result = RunResult(parameters=trainer.parameters, device=str(trainer.accelerator.device))
    batches = _micro_batches(loader, settings.gradient_accumulation)
    every = max(settings.steps // _CURVE_POINTS, 1)
    for index in range(settings.steps):
        loss = trainer.step(next(batches), index)
        done = index + 1
        if done % every == 0 or done == settings.steps:
            _add_point(result, done, "task_loss", "training", loss)
        if settings.evaluate_every and done % settings.evaluate_every == 0:
            for metric in trainer.task.evaluate(trainer.model, "validation", done).metrics:
                _add_point(result, done, metric.name, metric.split, metric.value)
        if on_step is not None:
            on_step(done, settings.steps)
    _evaluate_at_end(trainer, result)
    return result


def _add_point(result: RunResult, step: int, name: str, split: str, value: float) -> None:
    result.curves.append({"step": step, "name": name, "split": split, "value": value})


def _evaluate_at_end(trainer: Trainer, result: RunResult) -> None:
    config = trainer.config
    for split in ["validation", "test"] if config.data.evaluate_test else ["validation"]:
        evaluation = trainer.task.evaluate(trainer.model, split, config.training.steps)
        result.metrics += evaluation.metrics
        blocks = config.moe.blocks if config.moe else ()
        for block, layer in zip(blocks, evaluation.routing, strict=True):
            result.routing.append({"block": block, "split": split, **layer})
    result.backends, result.checks = trainer.backends, trainer.checks


class TrainingStep:
    """One training step on a fixed batch, for timing and memory: call it again and again.

    The model is freshly initialised, so its routing is close to balanced; the step is forward,
    backward, clipping and the AdamW update, as in ``train``. ``task`` is the loaded data of
    ``config``, which steps may share.
    """

    def __init__(self, config: RunConfig, task: Task) -> None:
        self._trainer = Trainer(config, task)
        per_step = config.training.gradient_accumulation
        size = config.training.batch_size // per_step
        self.device: torch.device = self._trainer.accelerator.device
        inputs, targets = task.fixed_batch(size)
        self._batches = [(inputs.to(self.device), targets.to(self.device))] * per_step
        self.tokens_per_step = size * per_step * config.model.tokens_per_example

    def __call__(self) -> None:
        """Run the step at the middle of the schedule, on the config's number of threads."""
        torch.set_num_threads(self._trainer.config.training.threads)
        self._trainer.model.train()
        self._trainer.step(self._batches, self._trainer.config.training.steps // 2)

    def score(self) -> None:
        """Run the forward pass alone, as in evaluation: no gradient, no noise, no dropout."""
        torch.set_num_threads(self._trainer.config.training.threads)
        with evaluating(self._trainer.model):
            for batch in self._batches:
                self._trainer.task.loss(self._trainer.model, batch)
