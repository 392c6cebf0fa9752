"""Every setting of a run, validated and frozen: the only place where a setting is declared.

Those of a backbone are in config/models.py, those of the data in config/data.py.

A ``RunConfig`` is resolved: nothing is left to a default elsewhere, and a setting that cannot
matter is absent (a dense run has no ``moe``; a plain MoE run has no group settings), so that two
runs that would compute the same have the same ``run_id`` and share one record. To add a setting,
declare it with ``added`` (config/identity.py): no id changes.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from moge_bench.config.data import DataConfig, ImageDataConfig, TextDataConfig
from moge_bench.config.frozen import Frozen
from moge_bench.config.identity import added, digest_of, hashed_settings, not_hashed
from moge_bench.config.models import (
    DENSE_RUN,
    ModelConfig,
    TextBackboneConfig,
    VisionModelConfig,
)
from moge_bench.config.overrides import nearest
from moge_bench.methods import METHODS
from moge_bench.ops.topography import Topography, resolve_map_shape

# The seeds of layers and of attacked texts are derived from a run's: all stay below 2^63.
MAX_SEED = 2**32 - 1


class ResidualConfig(Frozen):
    """How an MoE layer's output joins the stream (``moge_bench.moe.residual``)."""

    kind: Literal["plain", "momentum", "adam"] = "plain"
    mu: float = Field(0.7, ge=0, lt=1)
    gamma1: float = Field(1.0, gt=0)
    gamma2: float = Field(1.0, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)


class SigmaConfig(Frozen):
    """sigma(t) = start - (start - end) * (t / T)^gamma, per optimiser step (docs/method.md)."""

    start: float = Field(10.0, gt=0)
    end: float = Field(1.0, gt=0)
    gamma: float = Field(0.2, gt=0)


class GroupConfig(Frozen):
    """The group-sparse loss; present in MoGE runs only."""

    weight: float = Field(ge=0, description="lambda")
    size: int = Field(3, ge=1, description="h, side of a group")
    map_shape: tuple[int, int] | None = None
    stride: int = Field(1, ge=1)
    border: Literal["valid", "torus"] = "valid"
    reduction: Literal["token_mean", "official_image", "official_language"] = "token_mean"
    sigma: SigmaConfig = SigmaConfig()
    unit_energy: bool = added(False, before=False, description="of scores divided by their norm")
    shuffled: bool = added(
        False, before=False, description="experts' places on the map drawn anew at every step"
    )


class MoEConfig(Frozen):
    """The MoE layers; absent in dense runs."""

    blocks: tuple[int, ...] = Field((2, 3), description="blocks whose FFN is replaced, 0-based")
    num_experts: int = Field(16, ge=1, le=1024)
    top_k: int = Field(1, ge=1)
    expert_size: int | None = Field(None, ge=1, description="hidden width; None: ffn_size")
    renormalize: bool = False
    noise: bool = Field(True, description="Normal(0, 1) / N on the logits in training")
    balance: Literal["switch", "vmoe", "none"] = "vmoe"
    bias_update_rate: float = Field(0.0, ge=0, description="auxiliary-loss-free balancing")
    z_loss_weight: float = Field(0.0, ge=0, description="router z-loss, relative to the balance")
    aux_weight: float = Field(0.01, ge=0, description="weight of (balance + lambda * L_group)")
    capacity_factor: float | None = Field(None, gt=0, description="None: no token is dropped")
    batch_priority: bool = False
    residual: ResidualConfig = ResidualConfig()
    backend: Literal["auto", "extension", "reference"] = "auto"
    score_function: Literal["softmax", "sigmoid", "sqrtsoftplus"] = added(
        "softmax", before="softmax"
    )
    num_groups: int = added(1, before=1, ge=1, description="ranges of experts, for top_groups")
    top_groups: int = added(1, before=1, ge=1, description="ranges that a token may choose from")
    scale: float = added(1.0, before=1.0, gt=0, description="factor on the weights of the experts")
    regularizer: Literal["none", "entropy", "simbal", "orthogonality"] = added(
        "none", before="none", description="a loss that MoGE is compared with"
    )
    regularizer_weight: float = added(
        0.0, before=0.0, ge=0, description="of the regularizer, relative to the balance"
    )
    dropout: float = added(
        0.0, before=0.0, ge=0, lt=1,
        description="share of an MoE layer's output dropped in training, beside the FFN's own",
    )  # fmt: skip
    group: GroupConfig | None = None

    @field_validator("blocks")
    @classmethod
    def _in_order(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(blocks)) < len(blocks):
            raise ValueError("every block may be named once")
        return tuple(sorted(blocks))

    @model_validator(mode="after")
    def _check(self) -> MoEConfig:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} exceeds num_experts={self.num_experts}")
        if self.balance == "vmoe" and not self.noise:
            raise ValueError("balance='vmoe' needs noise=True: its load is a probability under it")
        if self.group is not None:
            rows, cols = resolve_map_shape(self.group.map_shape, self.num_experts)
            Topography(rows, cols, self.group.size, self.group.stride, self.group.border)
        if self.regularizer_weight and self.regularizer == "none":
            raise ValueError(f"regularizer_weight={self.regularizer_weight} needs a regularizer")
        return self


class TrainingConfig(Frozen):
    """One training loop for every model."""

    steps: int = Field(400, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    final_learning_rate: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(40, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    clip_norm: float | None = Field(1.0, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    gradient_accumulation: int = Field(1, ge=1)
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema_decay: float | None = added(
        None, before=None, gt=0, lt=1,
        description="evaluate averaged weights: decay * average + (1 - decay) * weights, each step",
    )  # fmt: skip
    gradient_checkpointing: bool = not_hashed(
        default=False, description="compute blocks again in the backward pass, for less memory"
    )
    threads: int = Field(1, ge=1, description="CPU threads; results depend on it in the last bits")
    processes: int = added(
        1, before=1, ge=1, description="that share every batch, as torchrun starts them"
    )
    expert_parallel: bool = added(
        False, before=False, description="divide the experts among the processes, by all-to-all"
    )  # fmt: skip
    keep_weights: bool = not_hashed(
        default=False, description="of a dense run, for upcycled_from='dense-run' to start from"
    )
    evaluate_every: int | None = Field(None, ge=1, description="steps; None: once, at the end")

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        parts = {"gradient_accumulation": self.gradient_accumulation}
        if self.processes > 1:
            parts["processes"] = self.processes
        if self.batch_size % math.prod(parts.values()):
            given = " * ".join(f"{name}={value}" for name, value in parts.items())
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of {given}")
        if self.expert_parallel and self.processes == 1:
            raise ValueError("expert_parallel=True needs processes of 2 or more, got processes=1")
        if self.expert_parallel and self.precision == "fp16":
            raise ValueError(
                "expert_parallel=True needs precision 'no' or 'bf16', got 'fp16': the processes "
                "would skip a step for an overflow each by itself"
            )
        return self


class RunConfig(Frozen):
    """One run: an arm with its seed."""

    preset: str = not_hashed(description="where the settings came from; for people")
    method: str
    seed: int = Field(0, ge=0, le=MAX_SEED)
    device: Literal["cpu", "cuda"] = added("cpu", before="cpu")
    model: ModelConfig = Field(VisionModelConfig(), discriminator="backbone")
    moe: MoEConfig | None = None
    data: DataConfig = Field(ImageDataConfig(), discriminator="kind")
    training: TrainingConfig = TrainingConfig()

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"no method is called {name!r}{nearest(name, list(METHODS))}")
        return name

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.model.learns != self.data.kind:
            raise ValueError(
                f"model.backbone={self.model.backbone!r} cannot learn data.kind={self.data.kind!r}"
            )
        if isinstance(self.data, TextDataConfig) and isinstance(self.model, TextBackboneConfig):
            stride, context = self.data.stride, self.model.context
            if stride is not None and stride > context:
                raise ValueError(f"data.stride={stride} skips tokens: model.context is {context}")
        if self.training.precision == "fp16" and self.device == "cpu":
            raise ValueError(
                "training.precision='fp16' needs device='cuda': on a CPU accelerate would compute "
                "in float32 and say nothing; there take 'bf16' or 'no'"
            )
        if self.model.upcycled_from == DENSE_RUN and self.training.processes > 1:
            raise ValueError(
                f"model.upcycled_from={DENSE_RUN!r} is for one process, got training.processes="
                f"{self.training.processes}: train the dense run by itself and name its weights"
            )
        self._check_sections()
        self._check_initial_values()
        if self.moe is not None:
            outside = [b for b in self.moe.blocks if not 0 <= b < self.model.depth]
            if outside or not self.moe.blocks:
                raise ValueError(
                    f"moe.blocks={self.moe.blocks} must name blocks 0 to {self.model.depth - 1}"
                )
            processes = self.training.processes
            if self.training.expert_parallel and self.moe.num_experts % processes:
                raise ValueError(
                    f"training.expert_parallel=True needs moe.num_experts of a multiple of "
                    f"training.processes={processes}, got {self.moe.num_experts}"
                )
        return self

    def _check_sections(self) -> None:
        """Check that the optional sections are those of the method."""
        method = METHODS[self.method]
        found = {"moe": self.moe is not None}
        if self.moe is not None:
            found["moe.group"] = self.moe.group is not None
        for section, given in found.items():
            if given != method.has(section):
                rule = "needs" if method.has(section) else "has no"
                raise ValueError(f"method={self.method!r} {rule} {section} settings")
        if self.moe and self.moe.regularizer != "none" and not self.moe.regularizer_weight:
            raise ValueError(
                f"method={self.method!r} needs moe.regularizer_weight above 0, got 0: it would be "
                "plain MoE"
            )

    def _check_initial_values(self) -> None:
        """Check that ``model.expert_init_blocks`` names FFNs that exist and are drawn."""
        blocks = self.model.expert_init_blocks
        if not blocks:
            return
        if any(not 0 <= block < self.model.depth for block in blocks):
            raise ValueError(
                f"model.expert_init_blocks={blocks} must name blocks 0 to {self.model.depth - 1}"
            )
        source = self.model.upcycled_from
        if source not in (None, DENSE_RUN):
            raise ValueError(
                f"model.expert_init_blocks={blocks} would have no effect: the weights are those of "
                f"model.upcycled_from={source!r}"
            )
        if source is None and self.moe is not None and set(blocks) & set(self.moe.blocks):
            raise ValueError(
                f"model.expert_init_blocks={blocks} must name blocks with a dense FFN, and "
                f"moe.blocks={self.moe.blocks} have none"
            )

    @property
    def from_scratch(self) -> RunConfig:
        """The same with a model of fresh weights."""
        fresh = {"upcycled_from": None, "upcycled_digest": None}
        return self.model_copy(update={"model": self.model.model_copy(update=fresh)})

    @property
    def dense_run(self) -> RunConfig:
        """The run that ``model.upcycled_from="dense-run"`` starts from."""
        return self.from_scratch.model_copy(update={"method": "dense", "moe": None})

    @property
    def run_id(self) -> str:
        """The record's name: 16 hex digits of the settings that decide the result, and the seed."""
        return digest_of(hashed_settings(self))

    @property
    def arm_id(self) -> str:
        """The same without the seed: equal for the runs that one table row averages."""
        settings = hashed_settings(self)
        del settings["seed"]
        return digest_of(settings)
