"""Train and evaluate one run, from its config to what it measured; resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moge_bench.config import RunConfig
from moge_bench.training.allocator import freed_memory_kept
from moge_bench.training.batches import BatchStream
from moge_bench.training.checkpoint import (
    load_checkpoint,
    restore,
    save_checkpoint,
    save_weights,
    state_of_rank,
)
from moge_bench.training.device import rounds_to_tf32
from moge_bench.training.divergence import Diverged, DivergenceWatch, check_objective
from moge_bench.training.dose import is_measured
from moge_bench.training.dose_curve import curve_name, typical_dose
from moge_bench.training.evaluate import Evaluation, Metric
from moge_bench.training.probes import Prober, is_probed, make_prober
from moge_bench.training.process import left_as_found, peers_left_as_found
from moge_bench.training.tasks import make_task
from moge_bench.training.trainer import Trainer

_CURVE_POINTS = 50
CHECKPOINT_EVERY_S = 60.0
READ_EVERY = 20  # steps on a GPU: to read a loss waits until the device has done the step


def _read_every(device: torch.device) -> int:
    """Return after how many steps their losses are read and checked; on a CPU it costs nothing."""
    return 1 if device.type == "cpu" else READ_EVERY


@dataclass
class RunResult:
    """What one run measured; a record is this and where it came from.

    ``backends`` maps an op to the backend that really ran; ``checks`` holds the gradient check and,
    on a GPU, whether float32 was rounded to TF32.
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
    dense_run: Path | None = None,
    keep: Path | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> RunResult:
    """Train and evaluate one run.

    The losses of a step are read and checked after every step on a CPU, every ``READ_EVERY`` steps
    on a GPU, and before anything is evaluated or saved: what is measured, the step of a divergence
    and what a checkpoint holds are the same. MoE layers let NaN through (models/build.py), so that
    this check finds it.

    The result depends on the config (seed and threads included) and the machine alone, not on
    where the run was interrupted. The test split is read once, at the end, and only where
    ``data.evaluate_test`` says so. The process is left as it was found, after an exception too:
    any number of runs fit in one, one after the other.

    With ``training.processes`` above 1 every one of these processes calls it; all return the same,
    and the first one writes the files.

    Args:
        config: what to train.
        on_step: called as on_step(done, total) after every step.
        checkpoint: a file to go on from where it exists, written every ``checkpoint_every_s``
            seconds, and removed at the end; None keeps no state.
        probe: a file for the routing of fixed inputs (training/probes.py).
        dense_run: the file of weights that ``model.upcycled_from="dense-run"`` starts from.
        keep: a file for the weights that are evaluated at the end; none of a diverged run.

    Raises ValueError for a checkpoint that is damaged or of another model, data that are not
    there, or a missing device.
    """
    with left_as_found(), freed_memory_kept(), peers_left_as_found():
        trainer = Trainer(config, make_task(config), dense_run)
        with trainer.in_force():
            probes = probe is not None and trainer.ranks.is_main
            prober = make_prober(config, trainer.task) if probes else None
            run = _Run(trainer, checkpoint, prober, probed=probe is not None)
            try:
                run.train(on_step, checkpoint_every_s)
                run.evaluate_at_end()
                with trainer.evaluated() as model:
                    if probe is not None and prober is not None:
                        prober.save(probe, model)
                    if keep is not None and trainer.ranks.is_main:
                        save_weights(keep, model)
            except Diverged as end:
                run.result.diverged_at = end.step
    if checkpoint is not None and trainer.ranks.is_main:
        checkpoint.unlink(missing_ok=True)
    return run.result


class _Run:
    """A trainer, its place in the data, and what was measured so far."""

    def __init__(
        self, trainer: Trainer, checkpoint: Path | None, prober: Prober | None, *, probed: bool
    ) -> None:
        self._trainer, self._checkpoint, self._prober = trainer, checkpoint, prober
        self._probed = probed  # by the first rank; all give it their experts then
        config = trainer.config
        settings = config.training
        loader = trainer.task.loader(
            settings.batch_size // settings.gradient_accumulation, config.seed,
            pin_memory=trainer.accelerator.device.type == "cuda", ranks=trainer.ranks,
        )  # fmt: skip
        self._stream = BatchStream(
            trainer.prepare_loader(loader), loader.generator, settings.gradient_accumulation
        )
        self._watch = DivergenceWatch(settings.steps)
        self._point_every = max(settings.steps // _CURVE_POINTS, 1)
        self._unread: list[torch.Tensor] = []
        self.result = RunResult(
            parameters=trainer.parameters, device=str(trainer.accelerator.device)
        )
        self._done = 0
        if checkpoint is not None:
            self._go_on_from(checkpoint)

    def _go_on_from(self, path: Path) -> None:
        found, trainer = load_checkpoint(path), self._trainer
        steps = set(trainer.ranks.gather(found.step if found is not None else None))
        if len(steps) > 1:
            raise ValueError(f"checkpoint {path} must be in a folder that all processes share")
        if found is None:
            return
        measured = found.measured
        model = trainer.accelerator.unwrap_model(trainer.model)
        data = restore(found, model, trainer.optimizer, trainer.average, trainer.ranks.index)
        self._stream.restore(data)
        self._done = found.step
        if self._done:  # what is evaluated before the next step, after the last one all of it
            trainer.follow_schedules(self._done - 1)
        self.result.curves = measured["curves"]
        trainer.backends, trainer.checks = measured["backends"], measured["checks"]
        if trainer.accelerator.scaler is not None:
            trainer.accelerator.scaler.load_state_dict(measured["scaler"])
        self._watch.first, self._watch.above = measured["first_loss"], measured["above"]
        if self._prober is not None:
            self._prober.restore(measured["probe"])

    def _save(self) -> None:
        assert self._checkpoint is not None
        trainer = self._trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = (model, trainer.optimizer, trainer.average)
        of_ranks = trainer.ranks.gather_to_main(state_of_rank(*training))
        if of_ranks is None:
            return
        scaler = trainer.accelerator.scaler
        measured = {
            "curves": self.result.curves,
            "backends": trainer.backends,
            "checks": trainer.checks,
            "first_loss": self._watch.first,
            "above": self._watch.above,
            "probe": None if self._prober is None else self._prober.state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        save_checkpoint(
            self._checkpoint, self._done, *training, self._stream.state(), measured, of_ranks
        )

    def train(self, on_step: Callable[[int, int], None] | None, every_s: float) -> None:
        """Make the steps that are left; raises Diverged."""
        trainer, settings = self._trainer, self._trainer.config.training
        read_every = _read_every(trainer.accelerator.device)
        saved = time.monotonic()
        while self._done < settings.steps:
            try:
                losses = trainer.step(
                    self._stream.next_step(), self._done,
                    measures_dose=is_measured(self._done, settings.steps),
                )  # fmt: skip
            except Exception:
                self._read_losses()  # an earlier divergence is what went wrong
                raise
            self._done += 1
            self._unread.append(losses)
            last = self._done == settings.steps
            evaluates = settings.evaluate_every and self._done % settings.evaluate_every == 0
            saves = self._saves(time.monotonic() - saved >= every_s, read_every)
            if len(self._unread) >= read_every or last or evaluates or saves:
                self._read_losses()
            if self._probed and is_probed(self._done, settings.steps):
                with trainer.evaluated() as model:
                    if self._prober is not None:
                        self._prober.after_step(self._done, model)
            if evaluates:
                evaluation = self._evaluate("validation")
                for metric in evaluation.metrics:
                    self._add_point(self._done, metric.name, metric.split, metric.value)
            if saves:
                self._save()
                saved = time.monotonic()
            if on_step is not None:
                on_step(self._done, settings.steps)

    def _saves(self, due: bool, read_every: int) -> bool:
        """Whether the state is saved now: as the first rank says, whose clock counts for all."""
        if self._checkpoint is None or self._trainer.ranks.count == 1:
            return due and self._checkpoint is not None
        # To ask waits for the device, as reading a loss does.
        return self._done % read_every == 0 and self._trainer.ranks.first(due)

    def _read_losses(self) -> None:
        """Read and check the losses of the steps since the last time; raises Diverged."""
        if not self._unread:
            return
        first = self._done - len(self._unread) + 1
        values = torch.stack(self._unread).tolist()
        self._unread.clear()
        for step, (task, objective) in enumerate(values, first):
            check_objective(step, objective)
            self._watch.check(step, task)
            if step % self._point_every == 0 or step == self._trainer.config.training.steps:
                self._add_point(step, "task_loss", "training", task)
            self._read_dose(step)

    def _read_dose(self, step: int) -> None:
        blocks = self._trainer.config.moe.blocks if self._trainer.config.moe else ()
        for term, values in self._trainer.doses.pop(step - 1, {}).items():
            for block, value in zip(blocks, values.tolist(), strict=True):
                if math.isfinite(value):  # a gradient that is not is the watch's to find
                    self._add_point(step, curve_name(term, block), "training", value)

    def _add_point(self, step: int, name: str, split: str, value: float) -> None:
        point = {"step": step, "name": name, "split": split, "value": value}
        self.result.curves.append(point)

    def _evaluate(self, split: str) -> Evaluation:
        trainer = self._trainer
        with trainer.evaluated() as model:
            return trainer.task.evaluate(model, split, self._done, trainer.ranks)

    def evaluate_at_end(self) -> None:
        """Measure the validation split, and the test split where the config reads it."""
        trainer, config = self._trainer, self._trainer.config
        blocks = config.moe.blocks if config.moe else ()
        points = [(point["name"], point["value"]) for point in self.result.curves]
        doses = [typical_dose(points, block) for block in blocks]
        for split in ["validation", "test"] if config.data.evaluate_test else ["validation"]:
            evaluation = self._evaluate(split)
            self.result.metrics += evaluation.metrics
            for name, layers in evaluation.routing.items():
                for block, layer, dose in zip(blocks, layers, doses, strict=True):
                    where = {"block": block, "split": name}
                    self.result.routing.append({**where, **layer, "dose": dose})
        self.result.backends, self.result.checks = trainer.backends, trainer.checks
        if trainer.accelerator.device.type == "cuda":
            self.result.checks = {**trainer.checks, "tf32": rounds_to_tf32()}
