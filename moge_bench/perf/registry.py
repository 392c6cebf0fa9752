"""The declared benchmark cases: what is measured, on which shapes, under which name.

Everything that the benchmark or the gate times is declared here, and nowhere else. Legend:
T tokens, N experts, k chosen, h group side, d hidden size, f hidden size of an expert.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import torch

from moge_bench.ops.topography import Topography, default_map_shape
from moge_bench.perf import names

SKEWS = ("uniform", "zipf", "collapsed")
GRID_EXPERTS = (8, 16, 32, 64, 128, 256)
GRID_TOP_K = (1, 2, 4, 8)
GRID_GROUP_SIZE = (2, 3, 4, 5)
GRID_TOKENS = (1024, 8192, 65536)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One benchmark case; ``name`` spells every field, so equal names mean equal work.

    ``hidden_size`` and ``ffn_size`` are 0 for the router. ``border`` follows from N and h:
    "valid" (the official border) where the group fits the map, else "torus".
    """

    op: str
    num_tokens: int
    num_experts: int
    top_k: int
    group_size: int
    skew: str = "uniform"
    dtype: str = "fp32"
    threads: int = 2
    hidden_size: int = 0
    ffn_size: int = 0

    def __post_init__(self) -> None:
        if self.op not in ("router", "moe_layer"):
            raise ValueError(f"op must be 'router' or 'moe_layer', got {self.op!r}")
        if self.skew not in SKEWS:
            raise ValueError(f"skew must be one of {SKEWS}, got {self.skew!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {tuple(DTYPES)}, got {self.dtype!r}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k must be from 1 to {self.num_experts}, got {self.top_k}")

    @property
    def border(self) -> str:
        """Return "valid" where the h x h group fits the default map, else "torus"."""
        return "valid" if self.group_size <= min(default_map_shape(self.num_experts)) else "torus"

    @property
    def renormalize(self) -> bool:
        """Weights of k > 1 choices sum to 1 (language models); k = 1 keeps the score (images)."""
        return self.top_k > 1

    @property
    def topography(self) -> Topography:
        """The map and the groups of this case."""
        rows, cols = default_map_shape(self.num_experts)
        return Topography(rows, cols, self.group_size, border=self.border)

    @property
    def name(self) -> str:
        """E.g. ``router/N64-k2-h3-T8192-uniform-fp32-valid-t2``."""
        sizes = f"N{self.num_experts}-k{self.top_k}-h{self.group_size}-T{self.num_tokens}"
        layer = f"-d{self.hidden_size}-f{self.ffn_size}" if self.op == "moe_layer" else ""
        return f"{self.op}/{sizes}{layer}-{self.skew}-{self.dtype}-{self.border}-t{self.threads}"

    @property
    def seed(self) -> int:
        """Seed of the inputs: it depends on the shapes and the skew, not on the thread count."""
        return zlib.crc32(self.name.rsplit("-t", 1)[0].encode())

    def fields(self) -> dict[str, Any]:
        """Return every field and the derived border, for a result row."""
        return asdict(self) | {"border": self.border}


def make_logits(case: Case) -> torch.Tensor:
    """Return the logits of ``case``, (T, N) in its dtype: N(0, 1) plus a prior for each expert.

    uniform: no prior; zipf: log of 1 / rank, so first choices follow about Zipf's law; collapsed:
    +8 for the same k experts in every token, so nearly all tokens agree. Which experts are the
    popular ones is drawn from the seed.
    """
    generator = torch.Generator().manual_seed(case.seed)
    logits = torch.randn(case.num_tokens, case.num_experts, generator=generator)
    order = torch.randperm(case.num_experts, generator=generator)
    if case.skew == "zipf":
        prior = -torch.log(torch.arange(1, case.num_experts + 1, dtype=torch.float32))
        logits[:, order] += prior
    elif case.skew == "collapsed":
        logits[:, order[: case.top_k]] += 8.0
    return logits.to(DTYPES[case.dtype])


def _grid() -> list[Case]:
    axes = itertools.product(GRID_TOKENS, GRID_EXPERTS, GRID_TOP_K, GRID_GROUP_SIZE, SKEWS)
    return [
        Case("router", tokens, experts, top_k, group, skew)
        for tokens, experts, top_k, group, skew in axes
        if top_k <= experts
    ]


def _layer(skew: str, num_tokens: int = 8192, num_experts: int = 32) -> Case:
    return Case("moe_layer", num_tokens, num_experts, 2, 3, skew, hidden_size=256, ffn_size=512)


LAYERS = [
    *(_layer(skew) for skew in SKEWS),
    _layer("uniform", num_tokens=1024),
    _layer("uniform", num_experts=8),
    _layer("uniform", num_experts=128),
]

# The bars are stated on these: few enough to run, compiled candidates included, in minutes.
CORE = [
    Case("router", 8192, 64, 2, 3),
    Case("router", 65536, 64, 2, 3),
    Case("router", 8192, 64, 2, 3, threads=1),
    Case("router", 8192, 64, 2, 3, dtype="bf16"),
    Case("router", 8192, 64, 2, 3, skew="zipf"),
    Case("router", 8192, 64, 2, 3, skew="collapsed"),
    Case("router", 8192, 16, 2, 3),
    Case("router", 8192, 32, 1, 3),
    Case("router", 8192, 256, 8, 3),
    LAYERS[0],
    LAYERS[1],
]
# What the gate times: processor time of one thread on the headline shape, a small and a large N
# and the layer, and wall time of two threads on the headline shape. Fast by intent.
GATE = [
    Case("router", 2048, 64, 2, 3, threads=1),
    Case("router", 4096, 16, 2, 3, threads=1),
    Case("router", 512, 256, 8, 3, threads=1),
    Case("router", 8192, 64, 2, 3),
    Case("moe_layer", 1024, 32, 2, 3, hidden_size=128, ffn_size=128),
]
GRID = list(dict.fromkeys([*_grid(), *LAYERS]))
SETS = {"core": CORE, "grid": GRID, "gate": GATE, "all": list(dict.fromkeys([*CORE, *GRID]))}


def select(
    set_name: str = "core",
    pattern: str | None = None,
    limit: int | None = None,
    threads: int | None = None,
) -> list[Case]:
    """Return the cases of a set that ``pattern`` fits (`names.matches`), at most ``limit`` of them.

    ``threads`` overrides the declared thread count (cases that become equal are merged). Raises
    ValueError for an unknown set, and for a pattern that fits nothing (naming a few that exist).
    """
    if set_name not in SETS:
        raise ValueError(f"set must be one of {tuple(SETS)}, got {set_name!r}")
    cases = SETS[set_name]
    if threads is not None:
        cases = list(dict.fromkeys(Case(**(asdict(case) | {"threads": threads})) for case in cases))
    chosen = set(names.choose((case.name for case in cases), pattern, f"set {set_name!r}"))
    return [case for case in cases if case.name in chosen][:limit]
