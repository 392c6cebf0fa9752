"""Random cases of the ops, each drawn from a seed and an index alone, so that one can be run again.

Legend: T tokens, N experts, k chosen, h group side, d and f sizes of an expert. Most cases are
small: faults are at odd sizes, borders and odd values, and 100,000 cases must end in an hour.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch

OPS = ("route", "group_norm", "expert_ffn")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# float16 experts are on CUDA alone.
EXPERT_DTYPES = DTYPES[:3]
KINDS = ("small", "normal", "wide", "ties", "huge", "denormal", "mixed", "nonfinite")
LAYOUTS = ("contiguous", "transposed", "strided", "rows repeated", "one value", "offset")
_MOST = 40_000  # entries of a matrix (T, N)
_WIDEST = 50  # h: beyond, the reference of one case takes minutes


@dataclass(frozen=True)
class Case:
    """One call of ``op``: ``options`` are its keywords, ``kinds`` and ``layouts`` of its tensors.

    ``sizes`` are T and N, or T, d, f, N and k; ``backward`` names what is differentiated.
    """

    seed: int
    index: int
    op: str
    sizes: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    backward: tuple[str, ...] = ()

    def __str__(self) -> str:
        settings = [f"{name}={value}" for name, value in self.options.items()]
        odd = [f"{name} {how}" for name, how in self.layouts.items() if how != "contiguous"]
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"case {self.index} of seed {self.seed}: {self.op} {'x'.join(map(str, self.sizes))} "
            f"{dtype} {self.kind}, {', '.join([*settings, *odd])}, backward of "
            f"{' and '.join(self.backward)}"
        )


def draw(seed: int, index: int) -> Case:
    """Return case ``index`` of ``seed``."""
    rng = random.Random(f"{seed}/{index}")
    op = rng.choices(OPS, (5, 2, 2))[0]
    make = {"route": _route, "group_norm": _group_norm, "expert_ffn": _expert_ffn}[op]
    return make(rng, seed, index)


def _size(rng: random.Random) -> int:
    """Return a number of experts, from 1 to 1024, mostly few."""
    few, usual, any_size = (
        rng.randint(1, 40),
        rng.choice((8, 16, 64, 100, 128)),
        rng.randint(1, 1024),
    )
    return rng.choices((few, usual, any_size, 1024), (60, 25, 14, 1))[0]


def _tokens(rng: random.Random, width: int) -> int:
    """Return a number of tokens: none, one, part of a tile, or some chunks of 512."""
    few, some, many = rng.randint(2, 40), rng.randint(41, 300), rng.choice((511, 513, 1100))
    return min(rng.choices((0, 1, few, some, many), (4, 10, 70, 14, 2))[0], _MOST // width)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _map(rng: random.Random, num_experts: int) -> dict[str, Any]:
    """Return the settings of map, groups and filter that fit ``num_experts``."""
    rows = rng.choice(_divisors(num_experts))
    shape = (rows, num_experts // rows)
    border = rng.choice(("valid", "torus"))
    largest = min(shape) if border == "valid" else max(shape) + 2
    whole = min(largest, _WIDEST if rng.random() < 0.02 else 8)
    size = rng.choice((1, min(2, whole), min(3, whole), rng.randint(1, whole), whole))
    return {
        "map_shape": shape, "group_size": size, "border": border,
        "sigma": rng.choice((1.0, 1.0, None, 0.3, 1e-3, 30.0, 1e200)),
        "stride": rng.choice((1, 1, 1, 2, 3, max(shape) + 1, 2**40)),
        "reduction": rng.choice(("token_mean", "official_image", "official_language")),
        "unit_energy": rng.random() < 0.25,
    }  # fmt: skip


def _kind(rng: random.Random) -> str:
    return rng.choices(KINDS, (10, 25, 15, 15, 8, 8, 8, 11))[0]


def _layouts(rng: random.Random, *names: str) -> dict[str, str]:
    return {name: rng.choices(LAYOUTS, (60, 10, 10, 8, 4, 8))[0] for name in names}


def _nonfinite(rng: random.Random, kind: str) -> str:
    return "propagate" if kind == "nonfinite" and rng.random() < 0.7 else "error"


def _ranges(rng: random.Random, num_experts: int) -> dict[str, int]:
    """Return num_groups, top_groups and top_k of a choice limited to ranges."""
    num_groups = rng.choice(_divisors(num_experts))
    top_groups = rng.randint(1, num_groups)
    most = num_experts // num_groups  # of a range
    top_k = top_groups * rng.choice((1, rng.randint(1, most), most))
    return {"num_groups": num_groups, "top_groups": top_groups, "top_k": top_k}


def _route(rng: random.Random, seed: int, index: int) -> Case:
    num_experts = _size(rng)
    kind = _kind(rng)
    options: dict[str, Any] = {
        "top_k": rng.choice(
            (1, min(2, num_experts), min(8, num_experts), rng.randint(1, num_experts), num_experts)
        ),
        "renormalize": rng.random() < 0.6,
        "nonfinite": _nonfinite(rng, kind),
        **(_map(rng, num_experts) if rng.random() < 0.9 else {"group_size": None}),
    }
    if rng.random() < 0.5:  # the wider routing
        options["score_function"] = rng.choice(("softmax", "sigmoid", "sqrtsoftplus"))
        options["scale"] = rng.choice((1.0, 2.5, 1e-3))
        options |= _ranges(rng, num_experts) if rng.random() < 0.4 else {}
    tensors = [name for name in ("noise", "bias", "mask") if rng.random() < 0.3]
    outputs = ("weights", "importance", "group_loss")
    backward = rng.choice((outputs, *((name,) for name in outputs)))
    if options["group_size"] is None:
        backward = ("weights", "importance")
    return Case(
        seed, index, "route", (_tokens(rng, num_experts), num_experts), rng.choice(DTYPES), kind,
        options, _layouts(rng, "logits", *tensors, "upstream"), backward,
    )  # fmt: skip


def _group_norm(rng: random.Random, seed: int, index: int) -> Case:
    num_experts, kind = _size(rng), _kind(rng)
    options = {**_map(rng, num_experts), "nonfinite": _nonfinite(rng, kind)}
    tensors = ["scores"] + (["mask"] if rng.random() < 0.3 else [])
    return Case(
        seed, index, "group_norm", (_tokens(rng, num_experts), num_experts), rng.choice(DTYPES),
        kind, options, _layouts(rng, *tensors), ("group_loss",),
    )  # fmt: skip


def _expert_ffn(rng: random.Random, seed: int, index: int) -> Case:
    num_experts = rng.choices((rng.randint(1, 8), rng.randint(9, 70)), (9, 1))[0]
    sizes = rng.choice((0, 1, rng.randint(2, 40), rng.randint(2, 40), rng.randint(41, 150)))
    hidden, ffn = (rng.choice((1, rng.randint(2, 9), rng.randint(10, 40))) for _ in "df")
    top_k = rng.choice((1, 2, rng.randint(1, 5)))
    parameters = ("w_in", "w_out") + (("b_in", "b_out") if rng.random() < 0.6 else ())
    options = {
        "activation": rng.choice(("gelu", "relu", "silu")),
        "dropped": rng.choice((0.0, 0.2, 1.0)),
        "index_dtype": rng.choice(("int64", "int32")),
    }
    return Case(
        seed, index, "expert_ffn", (sizes, hidden, ffn, num_experts, top_k),
        rng.choice(EXPERT_DTYPES), _kind(rng), options,
        _layouts(rng, "x", "weights", "experts", *parameters, "upstream"), ("y",),
    )  # fmt: skip
