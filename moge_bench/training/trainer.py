"""One optimiser step of any run, on accelerate: one CPU core to many devices, the same code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from moge_bench.config import RunConfig
from moge_bench.models.build import build_model, count_parameters
from moge_bench.models.cost import count_flops_per_token
from moge_bench.moe.insert import collect_aux
from moge_bench.moe.layer import MoEAux
from moge_bench.moe.parallel import (
    clip_grad_norm_,
    shard_experts,
    use_global_batch,
    whole_experts,
)
from moge_bench.routing.router import TopographicRouter
from moge_bench.routing.schedule import SigmaSchedule
from moge_bench.routing.selection_bias import update_selection_bias
from moge_bench.training.device import check_device, rounds_to_tf32
from moge_bench.training.divergence import check_objective
from moge_bench.training.dose import measure_doses
from moge_bench.training.evaluate import evaluating
from moge_bench.training.gradient_check import check_gradients
from moge_bench.training.optimizer import learning_rate_factor, make_optimizer
from moge_bench.training.process import AccelerateState, left_as_found, reproducible
from moge_bench.training.ranks import Ranks, check_processes
from moge_bench.training.task import Batch, Task


class Trainer:
    """Model, optimiser and schedules of one run; ``step`` makes one optimiser step.

    Everything but the constructor is to be called ``in_force``. The constructor seeds torch.
    ``dense_run`` is the file of weights that ``model.upcycled_from="dense-run"`` starts from.
    """

    def __init__(self, config: RunConfig, task: Task, dense_run: Path | None = None) -> None:
        self.config, self.task, self._dense_run = config, task, dense_run
        self._accelerate = AccelerateState()
        with self.in_force():
            self._build()
        self.backends: dict[str, str] = {}
        self.checks: dict[str, Any] = {}
        self.doses: dict[int, dict[str, torch.Tensor]] = {}  # by step, until they are read
        # From here on: dropout and gate noise, which ranks draw for different tokens.
        torch.manual_seed(config.seed + (self.ranks.index << 33))

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Give the process what this trainer works under for the body, and then what it had.

        Its number of threads, its accelerate state, and ``process.reproducible``.
        """
        threads = torch.get_num_threads()
        with self._accelerate.in_force(), reproducible():
            torch.set_num_threads(self.config.training.threads)
            try:
                yield
            finally:
                torch.set_num_threads(threads)

    def _build(self) -> None:
        config = self.config
        check_device(config.device)
        check_processes(config)
        self.accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.training.precision,
            # An epoch's end must not cut a step short: every step sees the same number of images.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=config.training.gradient_accumulation, sync_with_dataloader=False
            ),
        )
        self.ranks = Ranks(self.accelerator.process_index, self.accelerator.num_processes)
        if self.ranks != Ranks.launched():  # as under mpirun, which accelerate knows by itself
            raise RuntimeError(
                f"accelerate found {self.ranks}, RANK and WORLD_SIZE tell of {Ranks.launched()}: "
                "start the processes with torchrun"
            )
        model = build_model(config, self.task.vocabulary_size, self._dense_run)
        self.parameters = {
            **count_parameters(model),
            "flops_per_token": count_flops_per_token(config, self.task.vocabulary_size),
        }
        if config.training.expert_parallel:
            shard_experts(model)
        self.average = self._average(model)
        if config.training.gradient_checkpointing:
            _recompute_blocks(model)
        optimizer = make_optimizer(model, config.training)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self.ranks.count > 1:
            use_global_batch(self.model)
        self.sigma_schedule: SigmaSchedule | None = None
        if config.moe is not None and config.moe.group is not None:
            sigma = config.moe.group.sigma
            self.sigma_schedule = SigmaSchedule(
                sigma.start, sigma.end, sigma.gamma, total_steps=config.training.steps
            )

    def _average(self, model: nn.Module) -> AveragedModel | None:
        """Return what keeps the exponential moving average of the weights; buffers are copied."""
        decay = self.config.training.ema_decay
        if decay is None:
            return None
        average = AveragedModel(
            model, self.accelerator.device, multi_avg_fn=get_ema_multi_avg_fn(decay)
        )
        self.accelerator.prepare_model(average.module, evaluation_mode=True)  # for its precision
        return average

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Yield the model that is evaluated, of the averaged weights where the run averages.

        It has all experts, and the first rank's running statistics of batch norms, as a checkpoint
        and the next step of DDP have. Every rank enters it, whether it looks at the model or not.
        """
        trained = self.accelerator.unwrap_model(self.model)
        evaluated = trained if self.average is None else self.average.module
        self.ranks.spread(evaluated.buffers())
        with whole_experts(evaluated) as model:
            yield model

    def prepare_loader(self, loader: DataLoader) -> Any:
        """Return ``loader``, of this rank's shares, with its batches put on the device."""
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True,
            non_blocking=self.config.device != "cpu",
        )  # fmt: skip

    @property
    def _models(self) -> list[nn.Module]:
        """The models whose routers follow the schedules."""
        return [self.model] if self.average is None else [self.model, self.average.module]

    def step(
        self, batches: list[Batch], index: int, *, measures_dose: bool = False
    ) -> torch.Tensor:
        """Make optimiser step ``index`` from its micro-batches, without waiting for the device.

        Returns (mean task loss, mean objective), (2,) float64 on the device. Where the objective is
        not finite the weights are lost: nobody has looked at it before they were updated. The means
        are over all ranks. With ``measures_dose`` the first micro-batch is differentiated once more
        a loss, for ``doses``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.training.learning_rate * learning_rate_factor(
                self.config.training, index
            )
        self.follow_schedules(index)
        total = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for number, batch in enumerate(batches):
            measured = index if measures_dose and number == 0 else None
            total += self._accumulate(batch, measured)
        if self.config.moe is not None and self.config.moe.bias_update_rate:
            update_selection_bias(self.model)
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        return self.ranks.mean(total / len(batches))

    def follow_schedules(self, index: int) -> None:
        """Give the routers what follows from step ``index`` alone: filter and experts' places.

        A checkpoint has neither: what is evaluated before the next step needs this.
        """
        if self.sigma_schedule is not None:
            for model in self._models:
                self.sigma_schedule.apply(model, index)
        group = self.config.moe.group if self.config.moe is not None else None
        if group is not None and group.shuffled:
            for model in self._models:
                self._shuffle_places(model, index)

    def _shuffle_places(self, model: nn.Module, index: int) -> None:
        """Draw the experts' places on every map anew, from the run's seed and the step alone."""
        generator = torch.Generator().manual_seed(1_000_003 * (self.config.seed + 1) + index)
        for module in model.modules():
            if isinstance(module, TopographicRouter):
                module.shuffle_places(generator)

    def _accumulate(self, batch: Batch, measured_step: int | None) -> torch.Tensor:
        """Add the gradient of one micro-batch; the last one of a step also updates the weights.

        The dose is measured where ``measured_step`` says of which step it is.
        """
        config = self.config.training
        with self.accelerator.accumulate(self.model):
            with collect_aux(self.model) as auxes, self.accelerator.autocast():
                task = self.task.loss(self.model, batch)
            self._first_time(auxes)
            if measured_step is not None and auxes:
                self.doses[measured_step] = measure_doses(
                    task, self.model, auxes, scaler=self.accelerator.scaler, ranks=self.ranks
                )
            # docs/method.md "Total objective": the sum runs over the MoE layers.
            loss = sum((aux.loss for aux in auxes), start=task)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and config.clip_norm is not None:
                if config.expert_parallel:
                    clip_grad_norm_(self.model, config.clip_norm)
                else:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return torch.stack([task.detach().double(), loss.detach().double()])

    def _first_time(self, auxes: list[MoEAux]) -> None:
        if auxes and not self.backends:
            self.backends = {"route": auxes[0].routing.backend, "experts": auxes[0].experts_backend}
            model = self.accelerator.unwrap_model(self.model)
            self.checks = check_gradients(model, auxes, self.ranks)


def _recompute_blocks(model: Any) -> None:
    """Turn on activation checkpointing of every block of a model of transformers."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name in later versions
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


class TrainingStep:
    """One training step on a fixed batch, for timing and memory: call it again and again.

    The model is freshly initialised, so its routing is close to balanced; the step is forward,
    backward, clipping and the AdamW update, as in ``train``. ``task`` is the loaded data of
    ``config``, which steps may share. Steps of any configs can take turns in one process, which
    each call leaves as it found it but for torch's random numbers: every call starts them from
    the config's seed, since gate noise decides the loads, and so the bytes of a step.
    """

    def __init__(self, config: RunConfig, task: Task) -> None:
        with left_as_found():
            # Of a run that starts from another's weights, without them: the work is the same.
            self._trainer = Trainer(config.from_scratch, task)
        per_step = config.training.gradient_accumulation
        size = config.training.batch_size // per_step
        self.device: torch.device = self._trainer.accelerator.device
        inputs, targets = task.fixed_batch(size)
        self._batches = [(inputs.to(self.device), targets.to(self.device))] * per_step
        self.tokens_per_step = size * per_step * config.model.tokens_per_example

    def __call__(self) -> None:
        """Run the step at the middle of the schedule, on the config's number of threads."""
        with self._trainer.in_force():
            torch.manual_seed(self._trainer.config.seed)
            self._trainer.model.train()
            self._index = self._trainer.config.training.steps // 2
            self._losses = self._trainer.step(self._batches, self._index)
            self.tf32 = rounds_to_tf32()
        self._wait()

    def check(self) -> None:
        """Raise Diverged if the objective of the last step was not finite: nothing to time."""
        check_objective(self._index + 1, float(self._losses[1]))

    def score(self) -> None:
        """Run the forward pass alone, as in evaluation: no gradient, no noise, no dropout."""
        with self._trainer.in_force(), evaluating(self._trainer.model):
            for batch in self._batches:
                self._trainer.task.loss(self._trainer.model, batch)
        self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":  # else a clock would stop before the work does
            torch.cuda.synchronize(self.device)
