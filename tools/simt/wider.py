"""What "Wider routing" of docs/method.md adds to a call of the CUDA launchers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

from moge_bench.ops.choice import SCORE_FUNCTIONS, Choice
from moge_bench.ops.topography import Topography
from tools.interface import read_structs
from tools.simt.buffers import Buffers


@dataclass(frozen=True)
class Wider:
    """``choice`` but for top_k and renormalize, ``bias`` (N,) float32 and ``mask`` (T,) bool.

    Unit energy is the topography's.
    """

    choice: Choice | None = None
    bias: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def struct(
        self,
        launch_h: Path,
        buffers: Buffers,
        topo: Topography | None,
        num_tokens: int,
        mean: torch.Tensor | None,
        strict: bool,
    ) -> tuple[ctypes.Structure, int]:
        """Return ``Wide`` of launch.h, and the number of tokens that loss_scale is for."""
        by_counted = self.mask is not None and topo is not None and topo.reduction == "token_mean"
        choice = self.choice or Choice(1, 1)
        if by_counted and mean is None:
            mean = buffers.write("mean", (), torch.float32)
        wide = read_structs(launch_h, ["Wide"])["Wide"](
            bias=buffers.read("bias", self.bias), mask=buffers.read("mask", self.mask),
            mean=mean.data_ptr() if by_counted and mean is not None else None,
            scale=choice.scale, function=SCORE_FUNCTIONS.index(choice.score_function),
            num_groups=choice.num_groups, top_groups=choice.top_groups,
            unit_energy=topo is not None and topo.unit_energy, strict=strict,
        )  # fmt: skip
        return wide, 1 if by_counted else num_tokens
