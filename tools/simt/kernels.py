"""The launchers of csrc/cuda on the CPU, with torch tensors in and out.

Every tensor is copied to a place with guard bytes around it, and the emulator is told its bounds
and whether the kernel may write it. Legend: T tokens, N experts, k chosen, d hidden size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import simt_build
import simt_launch
import torch

from moge_bench.ops.topography import Topography

CUDA = simt_build.ROOT / "csrc/cuda"
SOURCES = (*sorted(CUDA.glob("*.cu")), Path(__file__).with_name("interface.cu"))
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
GUARD, CANARY = 256, 0xA5

_pointer, _int, _long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


def _structure(name: str, fields: str) -> type[ctypes.Structure]:
    """Return the ctypes twin of a struct of csrc/cuda/launch.h; interface.cu checks its size."""
    kinds = {"p": _pointer, "i": _int, "l": _long, "d": ctypes.c_double, "b": ctypes.c_bool}
    pairs = [field.split(":") for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [(n, kinds[kind]) for n, kind in pairs]})


Groups = _structure(
    "Groups", "rows:i cols:i stride:i torus:b group_rows:i group_cols:i num_row_taps:i "
    "num_col_taps:i row_taps:p col_taps:p",
)  # fmt: skip
RouteForward = _structure(
    "RouteForward", "logits:p noise:p groups:p weights:p experts:p row_stats:p importance:p load:p "
    "group_loss:p bad_rows:p workspace:p num_tokens:l loss_scale:d element:i num_experts:i "
    "top_k:i renormalize:i",
)  # fmt: skip
RouteBackward = _structure(
    "RouteBackward", "logits:p row_stats:p weights:p experts:p grad_weights:p grad_importance:p "
    "grad_loss:p groups:p grad_logits:p num_tokens:l loss_scale:d element:i num_experts:i top_k:i "
    "renormalize:i",
)  # fmt: skip
GroupNormForward = _structure(
    "GroupNormForward", "scores:p groups:p group_loss:p bad_rows:p workspace:p num_tokens:l "
    "loss_scale:d element:i num_experts:i",
)  # fmt: skip
GroupNormBackward = _structure(
    "GroupNormBackward", "scores:p grad_loss:p groups:p grad_scores:p num_tokens:l loss_scale:d "
    "element:i num_experts:i",
)  # fmt: skip
SortChoices = _structure(
    "SortChoices", "experts:p offsets:p slots:p positions:p bad_row:p workspace:p num_tokens:l "
    "num_experts:i top_k:i",
)  # fmt: skip
GatherRows = _structure(
    "GatherRows", "source:p weights:p slots:p rows:p num_tokens:l hidden_size:l element:i top_k:i"
)
CombineRows = _structure(
    "CombineRows",
    "rows:p weights:p positions:p output:p num_tokens:l hidden_size:l element:i top_k:i",
)
CombineWeightGrad = _structure(
    "CombineWeightGrad", "grad_output:p rows:p positions:p grad_weights:p num_tokens:l "
    "hidden_size:l element:i top_k:i",
)  # fmt: skip
STRUCTURES = (Groups, RouteForward, RouteBackward, GroupNormForward, GroupNormBackward,
              SortChoices, GatherRows, CombineRows, CombineWeightGrad)  # fmt: skip


class Buffers:
    """The memory of one launch: guarded, registered with the emulator, checked afterwards."""

    def __init__(self, library: ctypes.CDLL, shift: int = 0) -> None:
        """``shift``: elements by which inputs and outputs are off their 256-byte alignment.

        Not row_stats, whose pairs are moved at once.
        """
        self.library, self.shift = library, shift
        self.kept: list[tuple[str, torch.Tensor, int, int]] = []
        library.simt_forget()

    def _place(self, name: str, num_bytes: int, access: int, shift: int) -> torch.Tensor:
        offset = 0 if name == "row_stats" else shift
        memory = torch.full((2 * GUARD + 256 + num_bytes + offset,), CANARY, dtype=torch.uint8)
        start = GUARD + -(memory.data_ptr() + GUARD) % 256 + offset
        inside = memory[start : start + num_bytes]
        inside.fill_(0xFF)  # NaN or -1
        self.library.simt_register(name.encode(), inside.data_ptr(), num_bytes, access)
        self.kept.append((name, memory, start, start + num_bytes))
        return inside

    def read(self, name: str, tensor: torch.Tensor | None) -> int | None:
        """Return the address of a copy of ``tensor`` that the kernel may only read."""
        if tensor is None:
            return None
        flat = tensor.contiguous()
        num_bytes = flat.numel() * flat.element_size()
        place = self._place(name, num_bytes, simt_launch.READ, self.shift * flat.element_size())
        if num_bytes:
            place.view(flat.dtype).copy_(flat.reshape(-1))
        return place.data_ptr()

    def write(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor that the kernel must write before it may read it."""
        size = torch.Size(shape).numel() * dtype.itemsize
        place = self._place(name, size, simt_launch.WRITE_FIRST, self.shift * dtype.itemsize)
        return place.view(dtype).view(tuple(shape))

    def workspace(self, num_bytes: int) -> int:
        return self._place("workspace", num_bytes, simt_launch.WRITE_FIRST, 0).data_ptr()

    def assert_guards_whole(self) -> None:
        for name, memory, start, stop in self.kept:
            for guard in (memory[:start], memory[stop:]):
                assert (guard == CANARY).all(), f"written outside of {name}"


def groups_of(topo: Topography, taps: torch.Tensor) -> Groups:
    """Return the launcher's description of the groups; a torus folds the taps (csrc/plan.cpp)."""

    def fold(size: int) -> ctypes.Array[ctypes.c_double]:
        folded = [0.0] * min(len(taps), size)
        for v, tap in enumerate(taps.tolist()):
            folded[v % size] += tap
        return (ctypes.c_double * len(folded))(*folded)

    row_taps, col_taps = fold(topo.rows), fold(topo.cols)
    groups = Groups(
        topo.rows, topo.cols, min(topo.stride, 1024), topo.border == "torus", topo.group_rows,
        topo.group_cols, len(row_taps), len(col_taps),
        ctypes.addressof(row_taps), ctypes.addressof(col_taps),
    )  # fmt: skip
    groups.kept = row_taps, col_taps  # ctypes keeps no reference of an address
    return groups


class Kernels:
    """One build of the launchers; see csrc/cuda/launch.h for what each computes."""

    def __init__(self, mode: str = "plain", ahead: Path | None = None) -> None:
        """``mode`` and ``ahead`` as in simt_build.library."""
        torch.set_num_threads(1)  # matrices are small: more threads only wait for each other
        self.library = simt_launch.load(simt_build.library(SOURCES, mode, ahead))
        self.declare(self.library)

    def declare(self, library: ctypes.CDLL) -> None:
        """Give the functions of the library their types."""
        library.moge_cuda_last_error.restype = ctypes.c_char_p
        library.moge_cuda_route_workspace_bytes.argtypes = [_long, _int]
        library.moge_cuda_group_norm_workspace_bytes.argtypes = [_long]
        library.moge_cuda_sort_choices_workspace_bytes.argtypes = [_long, _int]
        for name in ("route", "group_norm", "sort_choices"):
            getattr(library, f"moge_cuda_{name}_workspace_bytes").restype = _long

    def buffers(self, shift: int = 0) -> Buffers:
        """Return memory for the arguments of one launcher."""
        return Buffers(self.library, shift)

    def schedule(self, number: int) -> None:
        self.library.simt_schedule(number)

    def _call(self, name: str, args: ctypes.Structure, buffers: Buffers) -> None:
        code = getattr(self.library, f"moge_cuda_{name}")(ctypes.byref(args), None)
        buffers.assert_guards_whole()
        if code != 0:
            raise RuntimeError(self.library.moge_cuda_last_error().decode())

    def route(
        self, logits, top_k, *, taps=None, topo=None, renormalize=True, noise=None, strict=False,
        shift=0,
    ):  # fmt: skip
        """Return a dict of the six outputs of moge::route and bad_rows (None unless strict)."""
        (num_tokens, num_experts), b = logits.shape, self.buffers(shift)
        groups = None if topo is None else groups_of(topo, taps)
        out = {
            "weights": b.write("weights", (num_tokens, top_k), torch.float32),
            "experts": b.write("experts", (num_tokens, top_k), torch.int64),
            "row_stats": b.write("row_stats", (num_tokens, 2), torch.float32),
            "importance": b.write("importance", (num_experts,), torch.float32),
            "load": b.write("load", (num_experts,), torch.int64),
            "group_loss": b.write("group_loss", (), torch.float32),
            "bad_rows": b.write("bad_rows", (2,), torch.int64) if strict else None,
        }
        size = self.library.moge_cuda_route_workspace_bytes(num_tokens, num_experts)
        args = RouteForward(
            b.read("logits", logits), b.read("noise", noise), groups and ctypes.addressof(groups),
            *(None if tensor is None else tensor.data_ptr() for tensor in out.values()),
            b.workspace(size), num_tokens, topo.scale(num_tokens) if topo else 0.0,
            ELEMENTS[logits.dtype], num_experts, top_k, renormalize,
        )  # fmt: skip
        self._call("route_forward", args, b)
        return {name: None if t is None else t.clone() for name, t in out.items()}

    def route_backward(
        self, grads, logits, routed, *, taps=None, topo=None, renormalize=True, shift=0
    ):
        """Return grad_logits; ``grads``: of weights, importance and loss, each a tensor or None."""
        (num_tokens, num_experts), b = logits.shape, self.buffers(shift)
        groups = None if topo is None else groups_of(topo, taps)
        grad_logits = b.write("grad_logits", logits.shape, logits.dtype)
        names = ("grad_weights", "grad_importance", "grad_loss")
        args = RouteBackward(
            b.read("logits", logits),
            *(b.read(name, routed[name]) for name in ("row_stats", "weights", "experts")),
            *(b.read(name, grad) for name, grad in zip(names, grads, strict=True)),
            groups and ctypes.addressof(groups), grad_logits.data_ptr(), num_tokens,
            topo.scale(num_tokens) if topo else 0.0, ELEMENTS[logits.dtype], num_experts,
            routed["experts"].shape[1], renormalize,
        )  # fmt: skip
        self._call("route_backward", args, b)
        return grad_logits.clone()

    def group_norm(self, scores, taps, topo, *, strict=False, shift=0):
        """Return (group_loss, bad_rows or None)."""
        b, groups = self.buffers(shift), groups_of(topo, taps)
        loss = b.write("group_loss", (), torch.float32)
        bad = b.write("bad_rows", (2,), torch.int64) if strict else None
        size = self.library.moge_cuda_group_norm_workspace_bytes(scores.shape[0])
        args = GroupNormForward(
            b.read("scores", scores), ctypes.addressof(groups), loss.data_ptr(),
            None if bad is None else bad.data_ptr(), b.workspace(size), scores.shape[0],
            topo.scale(scores.shape[0]), ELEMENTS[scores.dtype], scores.shape[1],
        )  # fmt: skip
        self._call("group_norm_forward", args, b)
        return loss.clone(), bad

    def group_norm_backward(self, grad_loss, scores, taps, topo, *, shift=0):
        b, groups = self.buffers(shift), groups_of(topo, taps)
        grad_scores = b.write("grad_scores", scores.shape, scores.dtype)
        args = GroupNormBackward(
            b.read("scores", scores), b.read("grad_loss", grad_loss), ctypes.addressof(groups),
            grad_scores.data_ptr(), scores.shape[0], topo.scale(scores.shape[0]),
            ELEMENTS[scores.dtype], scores.shape[1],
        )  # fmt: skip
        self._call("group_norm_backward", args, b)
        return grad_scores.clone()

    def sort_choices(self, experts, num_experts, *, strict=False):
        """Return a dict of offsets, slots, positions, and bad_row (None unless strict)."""
        (num_tokens, top_k), b = experts.shape, self.buffers()
        out = {
            "offsets": b.write("offsets", (num_experts + 1,), torch.int64),
            "slots": b.write("slots", (num_tokens * top_k,), torch.int32),
            "positions": b.write("positions", (num_tokens, top_k), torch.int32),
            "bad_row": b.write("bad_row", (), torch.int64) if strict else None,
        }
        size = self.library.moge_cuda_sort_choices_workspace_bytes(experts.numel(), num_experts)
        args = SortChoices(
            b.read("experts", experts),
            *(None if tensor is None else tensor.data_ptr() for tensor in out.values()),
            b.workspace(size), num_tokens, num_experts, top_k,
        )  # fmt: skip
        self._call("sort_choices", args, b)
        return {name: None if t is None else t.clone() for name, t in out.items()}

    def _rows(self, name, structure, inputs, result, shape, dtype, element, top_k, shift):
        """Launch one of the three that move rows: (T, k) or (R,) indices, d elements a row."""
        b = self.buffers(shift)
        out = b.write(result, shape, dtype)
        num_tokens, hidden_size = inputs.pop("sizes")
        addresses = [b.read(key, tensor) for key, tensor in inputs.items()]
        args = structure(
            *addresses, out.data_ptr(), num_tokens, hidden_size, ELEMENTS[element], top_k
        )
        self._call(name, args, b)
        return out.clone()

    def gather_rows(self, source, weights, slots, top_k, *, shift=0):
        inputs = {"source": source, "weights": weights, "slots": slots, "sizes": source.shape}
        shape = (slots.shape[0], source.shape[1])
        return self._rows("gather_rows", GatherRows, inputs, "rows", shape, source.dtype,
                          source.dtype, top_k, shift)  # fmt: skip

    def combine_rows(self, rows, weights, positions, *, shift=0):
        num_tokens, top_k = positions.shape
        inputs = {"rows": rows, "weights": weights, "positions": positions,
                  "sizes": (num_tokens, rows.shape[1])}  # fmt: skip
        shape = (num_tokens, rows.shape[1])
        return self._rows("combine_rows", CombineRows, inputs, "output", shape, rows.dtype,
                          rows.dtype, top_k, shift)  # fmt: skip

    def combine_weight_grad(self, grad_output, rows, positions, *, shift=0):
        inputs = {"grad_output": grad_output, "rows": rows, "positions": positions,
                  "sizes": grad_output.shape}  # fmt: skip
        return self._rows("combine_weight_grad", CombineWeightGrad, inputs, "grad_weights",
                          positions.shape, torch.float32, rows.dtype, positions.shape[1],
                          shift)  # fmt: skip
