"""The structs of csrc/cuda/launch.h as ctypes, read from the header: there is no second copy."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moge_bench.ops.topography import Topography

_TYPES: dict[str, Any] = {
    "int": ctypes.c_int, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64,
    "double": ctypes.c_double, "bool": ctypes.c_bool,
    "Element": ctypes.c_int32, "Activation": ctypes.c_int32,
}  # fmt: skip
# A launcher each: moge_cuda_<op>.
ROUTE_OPS = ("route_forward", "route_backward", "group_norm_forward", "group_norm_backward")
ROW_OPS = ("gather_rows", "combine_rows", "combine_weight_grad")
BIAS_OPS = ("bias_activation", "bias_activation_backward")
OPS = (*ROUTE_OPS, "sort_choices", *ROW_OPS, *BIAS_OPS)
ELEMENTS = ("float32", "float16", "bfloat16")  # in the order of launch.h's Element


def read_structs(header: Path, names: Sequence[str]) -> dict[str, type[ctypes.Structure]]:
    """Return a ctypes.Structure for each of the structs ``names`` of ``header``.

    Raises ValueError for a struct that is not there, and for a field of an unknown type.
    """
    text = re.sub(r"//[^\n]*", "", header.read_text(encoding="utf-8"))
    found = {}
    for name in names:
        body = re.search(rf"struct {name} \{{([^}}]*)\}};", text)
        if body is None:
            raise ValueError(f"{header} has no struct {name}")
        lines = [line.split() for line in body[1].split(";") if line.strip()]
        fields = [field for words in lines for field in _fields(" ".join(words), header)]
        found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


def struct_name(op: str) -> str:
    """Return the struct that ``moge_cuda_<op>`` takes: route_forward -> RouteForward."""
    return "".join(word.capitalize() for word in op.split("_"))


def _fields(declaration: str, header: Path) -> list[tuple[str, Any]]:
    """Return the fields of ``const double *row_taps, *col_taps`` or ``int rows, cols``."""
    match = re.fullmatch(r"(?:const )?(\w+)(\*?) (.+)", declaration)
    if match is None:
        raise ValueError(f"{header}: cannot read the field {declaration!r}")
    kind, star, names = match.groups()
    fields = []
    for name in names.split(", "):
        pointer = star or name.startswith("*")
        if not pointer and kind not in _TYPES:
            raise ValueError(f"{header}: {declaration!r} has a type other than {sorted(_TYPES)}")
        fields.append((name.lstrip("*"), ctypes.c_void_p if pointer else _TYPES[kind]))
    return fields


def groups_struct(launch_h: Path, topography: Topography, taps: int | None) -> ctypes.Structure:
    """Return the ``GroupMap`` of launch.h for taps at the address ``taps`` of device memory."""
    return read_structs(launch_h, ["GroupMap"])["GroupMap"](
        taps=taps, group_size=topography.group_size,
        rows=topography.rows, cols=topography.cols, stride=min(topography.stride, 1024),
        group_rows=topography.group_rows, group_cols=topography.group_cols,
        torus=topography.border == "torus",
    )  # fmt: skip
