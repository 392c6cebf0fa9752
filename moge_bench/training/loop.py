"""Train and evaluate one run, from its config to what it measured; resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moge_bench.config import RunConfig
from moge_bench.training.allocator import freed_memory_kept
from moge_bench.training.batches import BatchStream
from moge_bench.training.checkpoint import load_checkpoint, restore, save_checkpoint
from moge_bench.training.divergence import Diverged, DivergenceWatch
from moge_bench.training.evaluate import Metric
from moge_bench.training.probes import save_probe
from moge_bench.training.process import left_as_found, require_determinism
from moge_bench.training.tasks import make_task
from moge_bench.training.trainer import Trainer

_CURVE_POINTS = 50
CHECKPOINT_EVERY_S = 60.0


@dataclass
class RunResult:
    """What one run measured; a record is this and where it came from.

    ``backends`` maps an op to the backend that really ran; ``checks`` holds the gradient check.
    ``parameters``: "total", "active" (those that one token meets), and "flops_per_token".
    ``diverged_at`` is the optimiser step at which the run was given up: then ``metrics`` is empty.
    """

    metrics: list[Metric] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    routing: list[dict[str, Any]] = field(default_factory=list)
    backends: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    diverged_at: int | None = None


def train(
    config: RunConfig,
    on_step: Callable[[int, int], None] | None = None,
    *,
    checkpoint: Path | None = None,
    probe: Path | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> RunResult:
    """Train and evaluate one run.

    The result depends on the config (seed and threads included) and the machine alone, not on
    where the run was interrupted. The test split is read once, at the end, and only where
    ``data.evaluate_test`` says so. The process is left as it was found, after an exception too:
    any number of runs fit in one, one after the other.

    Args:
        config: what to train.
        on_step: called as on_step(done, total) after every step.
        checkpoint: a file to go on from where it exists, written every ``checkpoint_every_s``
            seconds, and removed at the end; None keeps no state.
        probe: a file for the routing of fixed inputs at the end (training/probes.py).

    Raises ValueError for a checkpoint that is damaged or of another model, data that are not
    there, or a missing device.
    """
    with left_as_found(), freed_memory_kept():
        require_determinism()
        trainer = Trainer(config, make_task(config))
        with trainer.in_force():
            run = _Run(trainer, checkpoint)
            try:
                run.train(on_step, checkpoint_every_s)
                run.evaluate_at_end()
                if probe is not None:
                    save_probe(probe, config, trainer.task, trainer.model)
            except Diverged as end:
                run.result.diverged_at = end.step
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return run.result


class _Run:
    """A trainer, its place in the data, and what was measured so far."""

    def __init__(self, trainer: Trainer, checkpoint: Path | None) -> None:
        self._trainer, self._checkpoint = trainer, checkpoint
        config = trainer.config
        settings = config.training
        loader = trainer.task.loader(
            settings.batch_size // settings.gradient_accumulation, config.seed
        )
        self._stream = BatchStream(
            trainer.accelerator.prepare(loader), loader.generator, settings.gradient_accumulation
        )
        self._watch = DivergenceWatch(settings.steps)
        self.result = RunResult(
            parameters=trainer.parameters, device=str(trainer.accelerator.device)
        )
        self._done = 0
        if checkpoint is not None:
            self._go_on_from(checkpoint)

    def _go_on_from(self, path: Path) -> None:
        found = load_checkpoint(path)
        if found is None:
            return
        trainer, measured = self._trainer, found.measured
        self._stream.restore(restore(found, trainer.model, trainer.optimizer))
        self._done = found.step
        self.result.curves = measured["curves"]
        trainer.backends, trainer.checks = measured["backends"], measured["checks"]
        self._watch.first, self._watch.above = measured["first_loss"], measured["above"]

    def _save(self) -> None:
        assert self._checkpoint is not None
        trainer = self._trainer
        measured = {
            "curves": self.result.curves,
            "backends": trainer.backends,
            "checks": trainer.checks,
            "first_loss": self._watch.first,
            "above": self._watch.above,
        }
        save_checkpoint(
            self._checkpoint, self._done, trainer.model, trainer.optimizer,
            self._stream.state(), measured,
        )  # fmt: skip

    def train(self, on_step: Callable[[int, int], None] | None, every_s: float) -> None:
        """Make the steps that are left; raises Diverged."""
        trainer, settings = self._trainer, self._trainer.config.training
        point_every = max(settings.steps // _CURVE_POINTS, 1)
        saved = time.monotonic()
        while self._done < settings.steps:
            loss = trainer.step(self._stream.next_step(), self._done)
            self._done += 1
            self._watch.check(self._done, loss)
            if self._done % point_every == 0 or self._done == settings.steps:
                self._add_point("task_loss", "training", loss)
            if settings.evaluate_every and self._done % settings.evaluate_every == 0:
                evaluation = trainer.task.evaluate(trainer.model, "validation", self._done)
                for metric in evaluation.metrics:
                    self._add_point(metric.name, metric.split, metric.value)
            if self._checkpoint is not None and time.monotonic() - saved >= every_s:
                self._save()
                saved = time.monotonic()
            if on_step is not None:
                on_step(self._done, settings.steps)

    def _add_point(self, name: str, split: str, value: float) -> None:
        point = {"step": self._done, "name": name, "split": split, "value": value}
        self.result.curves.append(point)

    def evaluate_at_end(self) -> None:
        """Measure the validation split, and the test split where the config reads it."""
        trainer, config = self._trainer, self._trainer.config
        for split in ["validation", "test"] if config.data.evaluate_test else ["validation"]:
            evaluation = trainer.task.evaluate(trainer.model, split, config.training.steps)
            self.result.metrics += evaluation.metrics
            blocks = config.moe.blocks if config.moe else ()
            for block, layer in zip(blocks, evaluation.routing, strict=True):
                self.result.routing.append({"block": block, "split": split, **layer})
        self.result.backends, self.result.checks = trainer.backends, trainer.checks
