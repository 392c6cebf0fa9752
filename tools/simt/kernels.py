"""The launchers of csrc/cuda on the CPU, with torch tensors in and out.

Legend: T tokens, N experts, k chosen, d hidden size, R rows (T k).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moge_bench.ops.topography import Topography
from tools.interface import ELEMENTS, OPS, groups_struct, read_structs, struct_name
from tools.simt import build, launch
from tools.simt.buffers import Buffers
from tools.simt.wider import Wider

CUDA = build.ROOT / "csrc/cuda"
SOURCES = (*sorted(CUDA.glob("*.cu")), Path(__file__).with_name("conversions.cu"))
LAUNCH_H = CUDA / "launch.h"
STRUCTS = read_structs(LAUNCH_H, [struct_name(op) for op in OPS])
Outputs = dict[str, torch.Tensor]


class Kernels:
    """One build of the launchers; see csrc/cuda/launch.h for what each computes."""

    def __init__(self, mode: str = "plain", ahead: Path | None = None) -> None:
        """``mode`` and ``ahead`` as in build.library."""
        torch.set_num_threads(1)  # matrices are small: more threads only wait for each other
        self.library = launch.load(build.library(SOURCES, mode, ahead))
        launch.declare(self.library)

    def buffers(self, shift: int = 0) -> Buffers:
        """Return memory for the arguments of one launcher."""
        return Buffers(self.library, shift)

    def schedule(self, number: int) -> None:
        """Run what follows in this order of blocks and threads: see launch.SCHEDULES."""
        self.library.simt_schedule(number)

    def _call(self, op: str, args: ctypes.Structure, buffers: Buffers) -> None:
        code = getattr(self.library, f"moge_cuda_{op}")(ctypes.byref(args), None)
        buffers.assert_guards_whole()
        if code != 0:
            raise RuntimeError(self.library.moge_cuda_last_error().decode())

    def _launch(
        self,
        op: str,
        buffers: Buffers,
        like: torch.Tensor | None,
        groups: tuple[torch.Tensor | None, Topography | None] | None = None,
        wider: Wider | None = None,
        mean: torch.Tensor | None = None,
        strict: bool = False,
        /,
        **fields: torch.Tensor | int | None,
    ) -> None:
        """Call a launcher with a struct of ``fields``: addresses and sizes; tensors are outputs.

        ``like`` gives the element type, and ``groups`` taps and topography, where the op has them.
        ``mean``: where a loss is divided by the tokens that count; None takes scratch.
        """
        values: dict[str, Any] = {
            name: field.data_ptr() if isinstance(field, torch.Tensor) else field
            for name, field in fields.items()
        }
        if like is not None:
            values["element"] = ELEMENTS.index(str(like.dtype).removeprefix("torch."))
        if groups is not None:
            taps, topo = groups
            address, struct = buffers.read("taps", taps), None
            if topo is not None and address is not None:
                struct = groups_struct(LAUNCH_H, topo, address)
            values["groups"] = struct and ctypes.addressof(struct)
            num_tokens = values["num_tokens"]
            if wider is not None:
                wide, num_tokens = wider.struct(LAUNCH_H, buffers, topo, num_tokens, mean, strict)
                values["wide"] = ctypes.addressof(wide)
            values["loss_scale"] = topo.scale(num_tokens) if topo else 0.0
        self._call(op, STRUCTS[struct_name(op)](**values), buffers)

    def route(
        self,
        logits: torch.Tensor,
        top_k: int,
        *,
        taps: torch.Tensor | None = None,
        topo: Topography | None = None,
        renormalize: bool = True,
        noise: torch.Tensor | None = None,
        strict: bool = False,
        shift: int = 0,
        wider: Wider | None = None,
    ) -> Outputs:
        """Return the seven outputs of moge::route, and bad_rows where ``strict``.

        ``noise`` of shape (N,) is added to every row.
        """
        (num_tokens, num_experts), b = logits.shape, self.buffers(shift)
        out = {
            "weights": b.write("weights", (num_tokens, top_k), torch.float32),
            "experts": b.write("experts", (num_tokens, top_k), torch.int64),
            "row_stats": b.write("row_stats", (num_tokens, 2), torch.float32),
            "importance": b.write("importance", (num_experts,), torch.float32),
            "load": b.write("load", (num_experts,), torch.int64),
            "first_load": b.write("first_load", (num_experts,), torch.int64),
            "group_loss": b.write("group_loss", (), torch.float32),
        }
        if strict:
            out["bad_rows"] = b.write("bad_rows", (2,), torch.int64)
        size = self.library.moge_cuda_route_workspace_bytes(num_tokens, num_experts)
        self._launch(
            "route_forward", b, logits, (taps, topo), wider, out["group_loss"], strict, **out,
            logits=b.read("logits", logits), noise=b.read("noise", noise),
            workspace=b.workspace(size), num_tokens=num_tokens,
            noise_stride=0 if noise is not None and noise.dim() == 1 else num_experts,
            num_experts=num_experts, top_k=top_k, renormalize=renormalize,
        )  # fmt: skip
        return {name: tensor.clone() for name, tensor in out.items()}

    def route_backward(
        self,
        grads: Sequence[torch.Tensor | None],
        logits: torch.Tensor,
        routed: Outputs,
        *,
        taps: torch.Tensor | None = None,
        topo: Topography | None = None,
        renormalize: bool = True,
        shift: int = 0,
        wider: Wider | None = None,
    ) -> torch.Tensor:
        """Return grad_logits; ``grads``: of weights, importance and loss, each a tensor or None."""
        (num_tokens, num_experts), b = logits.shape, self.buffers(shift)
        grad_logits = b.write("grad_logits", logits.shape, logits.dtype)
        inputs = {name: routed[name] for name in ("row_stats", "weights", "experts")}
        names = ("grad_weights", "grad_importance", "grad_loss")
        given = {"logits": logits, **inputs, **dict(zip(names, grads, strict=True))}
        self._launch(
            "route_backward", b, logits, (taps, topo), wider, grad_logits=grad_logits,
            **{name: b.read(name, tensor) for name, tensor in given.items()},
            num_tokens=num_tokens, num_experts=num_experts, top_k=routed["experts"].shape[1],
            renormalize=renormalize,
        )  # fmt: skip
        return grad_logits.clone()

    def group_norm(
        self,
        scores: torch.Tensor,
        taps: torch.Tensor,
        topo: Topography,
        *,
        strict: bool = False,
        shift: int = 0,
        wider: Wider | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (group_loss, bad_rows or None)."""
        (num_tokens, num_experts), b = scores.shape, self.buffers(shift)
        loss = b.write("group_loss", (), torch.float32)
        bad = b.write("bad_rows", (2,), torch.int64) if strict else None
        size = self.library.moge_cuda_group_norm_workspace_bytes(num_tokens)
        self._launch(
            "group_norm_forward", b, scores, (taps, topo), wider, loss,
            scores=b.read("scores", scores),
            group_loss=loss, bad_rows=bad, workspace=b.workspace(size), num_tokens=num_tokens,
            num_experts=num_experts,
        )  # fmt: skip
        return loss.clone(), bad

    def group_norm_backward(
        self,
        grad_loss: torch.Tensor,
        scores: torch.Tensor,
        taps: torch.Tensor,
        topo: Topography,
        *,
        shift: int = 0,
        wider: Wider | None = None,
    ) -> torch.Tensor:
        """Return grad_scores."""
        (num_tokens, num_experts), b = scores.shape, self.buffers(shift)
        grad_scores = b.write("grad_scores", scores.shape, scores.dtype)
        self._launch(
            "group_norm_backward", b, scores, (taps, topo), wider,
            scores=b.read("scores", scores),
            grad_loss=b.read("grad_loss", grad_loss), grad_scores=grad_scores,
            num_tokens=num_tokens, num_experts=num_experts,
        )  # fmt: skip
        return grad_scores.clone()

    def sort_choices(
        self, experts: torch.Tensor, num_experts: int, *, strict: bool = False
    ) -> Outputs:
        """Return offsets, slots, positions, and bad_row where ``strict``."""
        (num_tokens, top_k), b = experts.shape, self.buffers()
        out = {
            "offsets": b.write("offsets", (num_experts + 1,), torch.int64),
            "slots": b.write("slots", (num_tokens * top_k,), torch.int32),
            "positions": b.write("positions", (num_tokens, top_k), torch.int32),
        }
        if strict:
            out["bad_row"] = b.write("bad_row", (), torch.int64)
        size = self.library.moge_cuda_sort_choices_workspace_bytes(experts.numel(), num_experts)
        self._launch(
            "sort_choices", b, None, **out, experts=b.read("experts", experts),
            workspace=b.workspace(size), num_tokens=num_tokens, num_experts=num_experts,
            top_k=top_k,
        )  # fmt: skip
        return {name: tensor.clone() for name, tensor in out.items()}

    def gather_rows(
        self,
        source: torch.Tensor,
        weights: torch.Tensor | None,
        slots: torch.Tensor,
        top_k: int,
        *,
        shift: int = 0,
    ) -> torch.Tensor:
        """Return (R, d) rows of (T, d) ``source``, times (T, k) ``weights`` if there are any."""
        (num_tokens, hidden_size), b = source.shape, self.buffers(shift)
        rows = b.write("rows", (slots.shape[0], hidden_size), source.dtype)
        self._launch(
            "gather_rows", b, source, source=b.read("source", source), rows=rows,
            weights=b.read("weights", weights), slots=b.read("slots", slots),
            num_tokens=num_tokens, hidden_size=hidden_size, top_k=top_k,
        )  # fmt: skip
        return rows.clone()

    def combine_rows(
        self,
        rows: torch.Tensor,
        weights: torch.Tensor | None,
        positions: torch.Tensor,
        *,
        shift: int = 0,
    ) -> torch.Tensor:
        """Return (T, d) sums of the rows at (T, k) ``positions``, weighted if there are weights."""
        (num_tokens, top_k), b = positions.shape, self.buffers(shift)
        output = b.write("output", (num_tokens, rows.shape[1]), rows.dtype)
        self._launch(
            "combine_rows", b, rows, rows=b.read("rows", rows), output=output,
            weights=b.read("weights", weights), positions=b.read("positions", positions),
            num_tokens=num_tokens, hidden_size=rows.shape[1], top_k=top_k,
        )  # fmt: skip
        return output.clone()

    def combine_weight_grad(
        self,
        grad_output: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        *,
        shift: int = 0,
    ) -> torch.Tensor:
        """Return (T, k) gradients of the weights of ``combine_rows``."""
        (num_tokens, top_k), b = positions.shape, self.buffers(shift)
        grad_weights = b.write("grad_weights", (num_tokens, top_k), torch.float32)
        self._launch(
            "combine_weight_grad", b, rows, grad_output=b.read("grad_output", grad_output),
            rows=b.read("rows", rows), positions=b.read("positions", positions),
            grad_weights=grad_weights, num_tokens=num_tokens, hidden_size=rows.shape[1],
            top_k=top_k,
        )  # fmt: skip
        return grad_weights.clone()

    def bias_activation(
        self,
        rows: torch.Tensor,
        bias: torch.Tensor,
        offsets: torch.Tensor,
        activation: int,
        *,
        shift: int = 0,
    ) -> torch.Tensor:
        """Return (R, c) act(rows + bias of their expert); ``activation`` as in launch.h."""
        b = self.buffers(shift)
        output = b.write("output", rows.shape, rows.dtype)
        self._launch(
            "bias_activation", b, rows, rows=b.read("rows", rows), bias=b.read("bias", bias),
            offsets=b.read("offsets", offsets), output=output, num_rows=rows.shape[0],
            hidden_size=rows.shape[1], activation=activation, num_experts=offsets.numel() - 1,
        )  # fmt: skip
        return output.clone()

    def bias_activation_backward(
        self,
        grad: torch.Tensor,
        rows: torch.Tensor | None,
        bias: torch.Tensor | None,
        offsets: torch.Tensor,
        activation: int,
        *,
        shift: int = 0,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return (grad_rows (R, c), None without an activation; grad_bias (N, c))."""
        b, (num_rows, size) = self.buffers(shift), grad.shape
        num_experts = offsets.numel() - 1
        grad_rows = b.write("grad_rows", grad.shape, grad.dtype) if activation else None
        grad_bias = b.write("grad_bias", (num_experts, size), grad.dtype)
        workspace = self.library.moge_cuda_bias_activation_backward_workspace_bytes(
            num_rows, num_experts, size
        )
        self._launch(
            "bias_activation_backward", b, grad, grad_output=b.read("grad_output", grad),
            rows=b.read("rows", rows), bias=b.read("bias", bias),
            offsets=b.read("offsets", offsets), grad_rows=grad_rows, grad_bias=grad_bias,
            workspace=b.workspace(workspace), num_rows=num_rows, hidden_size=size,
            activation=activation, num_experts=num_experts,
        )  # fmt: skip
        return None if grad_rows is None else grad_rows.clone(), grad_bias.clone()
