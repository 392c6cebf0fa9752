"""Device memory and arguments of a case: random tensors, rooms for results, launch.h's struct."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_bench.ops.choice import SCORE_FUNCTIONS
from moge_bench.ops.topography import Topography, default_map_shape, gaussian_taps
from tools.gpu_check.cases import WIDER_FUNCTION, WIDER_SCALE, Case
from tools.interface import BIAS_OPS, ELEMENTS, groups_struct, read_structs, struct_name
from tools.ptx.memory import Device

Array = npt.NDArray[Any]
SIGMA = 1.0
GELU = 1  # of launch.h's Activation
_SLACK_BYTES = 1 << 20  # for what the device puts between buffers


def _elements(rng: np.random.Generator, element: str, rows: int, columns: int) -> Array:
    """Return normal values; the same 1024 rows again and again, which no kernel can tell."""
    values = rng.standard_normal((min(rows, 1024), columns), dtype=np.float32)
    if element == "bfloat16":  # numpy has no such type: the upper halves of float32
        drawn = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        drawn = values.astype(element)
    return np.tile(drawn, (-(-rows // len(drawn)), 1))[:rows]


def _tensors(case: Case) -> dict[str, Array]:
    """Return contents for every tensor field of launch.h's structs, results of a pass included."""
    rng = np.random.default_rng(0)
    tokens, experts, k, hidden = (
        case.num_tokens, case.num_experts, case.top_k, case.hidden_size,
    )  # fmt: skip
    wide = {
        "route_forward": ("logits",), "route_backward": ("logits", "grad_logits"),
        "group_norm_forward": ("scores",), "group_norm_backward": ("scores", "grad_scores"),
    }.get(case.op, ())  # fmt: skip
    tensors = {name: _elements(rng, case.element, tokens, experts) for name in wide}
    if not wide:
        tensors["source"] = _elements(rng, case.element, tokens, hidden)
        of_choices = tokens * k if case.op in BIAS_OPS else tokens
        for name in ("output", "grad_output"):
            tensors[name] = _elements(rng, case.element, of_choices, hidden)
        if case.op in BIAS_OPS:
            tensors["grad_rows"] = _elements(rng, case.element, tokens * k, hidden)
            for name in ("bias", "grad_bias"):
                tensors[name] = _elements(rng, case.element, experts, hidden)
        tensors["rows"] = _elements(rng, case.element, tokens * k, hidden)
    slots = rng.permutation(tokens * k).astype(np.int32)
    rest: dict[str, Array] = {
        "weights": rng.random((tokens, k), np.float32),
        "grad_weights": rng.random((tokens, k), np.float32),
        "experts": rng.integers(0, experts, (tokens, k)),
        "row_stats": np.tile(np.array([3.0, 1.0 / experts], np.float32), (tokens, 1)),
        "slots": slots,
        "positions": np.argsort(slots).astype(np.int32),
        "importance": np.zeros(experts, np.float32),
        "grad_importance": rng.random(experts, np.float32),
        "load": np.zeros(experts, np.int64),
        "first_load": np.zeros(experts, np.int64),
        "offsets": np.arange(experts + 1, dtype=np.int64) * (tokens * k // experts),
        "group_loss": np.zeros(1, np.float32),
        "grad_loss": np.ones(1, np.float32),
        "bad_rows": np.zeros(2, np.int64),
        "bad_row": np.zeros(1, np.int64),
    }
    return tensors | rest


def _wider_tensors(case: Case) -> dict[str, Array]:
    """Return what ``Wide`` of launch.h points to."""
    if not case.wider:
        return {}
    bias = np.linspace(-0.1, 0.1, case.num_experts, dtype=np.float32)
    return {"bias": bias, "mask": np.ones(case.num_tokens, np.uint8)}


class Inputs:
    """A device with the tensors of ``case``, and the argument of its launcher.

    Args:
        case: the op and its sizes.
        csrc: the folder of launch.h's parent and kernels.h.
        workspace_bytes: of the op.

    Noise is null, and so are the weights of a gather: that is dispatch, which all choices use.
    Raises ValueError where launch.h's struct has a field that this file does not know.
    """

    def __init__(self, case: Case, csrc: Path, workspace_bytes: int) -> None:
        name = struct_name(case.op)
        struct = read_structs(csrc / "cuda" / "launch.h", [name])[name]
        fields = [field[0] for field in struct._fields_]
        shape = default_map_shape(case.num_experts)
        group_size = case.group_size or 1
        topography = Topography(*shape, group_size, border=case.border)
        taps = gaussian_taps(group_size, SIGMA)
        values: dict[str, Any] = {
            "num_tokens": case.num_tokens, "num_experts": case.num_experts, "top_k": case.top_k,
            "hidden_size": case.hidden_size, "element": ELEMENTS.index(case.element),
            "loss_scale": 1.0 / case.num_tokens, "renormalize": 1, "noise": None,
            "noise_stride": 0, "groups": None, "wide": None, "activation": GELU,
            "num_rows": case.num_tokens * case.top_k,
        }  # fmt: skip
        tensors = _tensors(case) | {"workspace": np.zeros(workspace_bytes, np.uint8)}
        if case.op == "gather_rows":
            del tensors["weights"]
            values["weights"] = None
        unknown = [field for field in fields if field not in values and field not in tensors]
        if unknown:
            raise ValueError(f"launch.h's {name} has {', '.join(unknown)}, unknown to the report")
        tensors["taps"] = taps.numpy()
        used = {field: tensors[field] for field in (*fields, "taps") if field in tensors}
        used |= _wider_tensors(case)
        self.device = Device(sum(array.nbytes + 512 for array in used.values()) + _SLACK_BYTES)
        address = {field: self.device.put(array, field).address for field, array in used.items()}
        values |= address
        self._groups = groups_struct(csrc / "cuda" / "launch.h", topography, address["taps"])
        if case.group_size is not None:
            values["groups"] = ctypes.addressof(self._groups)
        if case.wider:
            self._wide = read_structs(csrc / "cuda" / "launch.h", ["Wide"])["Wide"](
                bias=address["bias"], mask=address["mask"],
                mean=address["group_loss"] if case.counted else None,
                function=SCORE_FUNCTIONS.index(WIDER_FUNCTION), scale=WIDER_SCALE,
                num_groups=case.ranges[0], top_groups=case.ranges[1], unit_energy=1,
            )  # fmt: skip
            values["wide"] = ctypes.addressof(self._wide)
        self.struct: Any = struct(**{field: values[field] for field in fields})


def workspace_bytes(case: Case, functions: Any) -> int:
    """Return what launch.h's function says for ``case``; 0 for an op that has none."""
    calls: dict[str, tuple[str, tuple[Any, ...]]] = {
        "route_forward": ("route", (case.num_tokens, case.num_experts)),
        "group_norm_forward": ("group_norm", (case.num_tokens,)),
        "sort_choices": ("sort_choices", (case.num_tokens * case.top_k, case.num_experts)),
        "bias_activation_backward": (
            "bias_activation_backward",
            (case.num_tokens * case.top_k, case.num_experts, case.hidden_size),
        ),
    }
    if case.op not in calls:
        return 0
    name, sizes = calls[case.op]
    function: Callable[..., int] = getattr(functions, f"moge_cuda_{name}_workspace_bytes")
    function.restype, function.argtypes = (  # type: ignore[attr-defined]
        ctypes.c_int64, [ctypes.c_int64, ctypes.c_int32, ctypes.c_int64][: len(sizes)],
    )  # fmt: skip
    return function(*sizes)
