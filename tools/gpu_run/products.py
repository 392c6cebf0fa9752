"""Do the experts' products by Triton beat one product an expert, and with which tiles?"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from moge_bench.ops import grouped_ffn, grouped_product
from moge_bench.ops.grouped_product import Tile
from moge_bench.perf.timing import CudaClock

DEVICE = torch.device("cuda")
DTYPES = (torch.float32, torch.float16)
# Tokens, hidden size, hidden size of an expert: a layer of the suite's runs, and one that fills a
# GPU. Two choices a token.
LAYERS = {"small": (4096, 64, 128), "large": (16384, 1024, 2048)}
NUM_EXPERTS = (8, 64)
WAYS: dict[str, Callable[[torch.Tensor], Any]] = {
    "triton": grouped_ffn._TritonProduct, "per expert": grouped_ffn._ProductPerExpert,
}  # fmt: skip
# Of the product and of its gradient for the weight: (rows, outer, inner), warps, stages.
OTHER_TILES = {
    4: (
        (Tile(128, 64, 16, 8), Tile(16, 128, 64, 8)),
        (Tile(128, 128, 16, 8), Tile(16, 128, 128, 8)),
    ),
    2: ((Tile(128, 128, 64, 8), Tile(64, 128, 128, 8)), (Tile(64, 64, 64), Tile(64, 64, 64))),
}
LARGEST_ERROR = {torch.float32: 1e-5, torch.float16: 5e-3}
Step = Callable[[], Sequence[torch.Tensor]]


def make_step(dtype: torch.dtype, num_experts: int, layer: str) -> Step:
    """Return forward and backward of ``expert_ffn``, as the gradients it returns."""
    torch.manual_seed(0)
    num_tokens, d, f = LAYERS[layer]

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, device=DEVICE) * shape[-1] ** -0.5
        return values.to(dtype).requires_grad_()

    x, w_in, w_out = draw(num_tokens, d), draw(num_experts, f, d), draw(num_experts, d, f)
    weights = torch.rand(num_tokens, 2, device=DEVICE)
    experts = torch.randint(0, num_experts, (num_tokens, 2), device=DEVICE)
    upstream = torch.randn(num_tokens, d, device=DEVICE).to(dtype)

    def step() -> Sequence[torch.Tensor]:
        y = grouped_ffn.expert_ffn(
            x, weights, experts, w_in, None, w_out, None, "gelu", check_experts=False
        )
        return torch.autograd.grad(y, (x, w_in, w_out), upstream)

    return step


@contextmanager
def products_by(way: str, tiles: tuple[Tile, Tile] | None = None, size: int = 4) -> Iterator[None]:
    """Have ``expert_ffn`` take one of WAYS, and other tiles for elements of ``size`` bytes."""
    found = grouped_ffn._choose_product
    old = grouped_product.PRODUCT_TILES[size], grouped_product.OUTER_TILES[size]
    grouped_ffn._choose_product = lambda x, w_in: WAYS[way]
    grouped_product.PRODUCT_TILES[size], grouped_product.OUTER_TILES[size] = tiles or old
    try:
        yield
    finally:
        grouped_ffn._choose_product = found
        grouped_product.PRODUCT_TILES[size], grouped_product.OUTER_TILES[size] = old


def differ(ours: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """Return the largest relative difference of two lists of gradients, by their norms."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(ours, others, strict=True)
    )


def products_of_the_experts() -> dict[str, Any]:
    """How long does a step of the experts take by each way? In turns; only where they agree."""
    measure = CudaClock(DEVICE)
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        for layer in LAYERS:
            for num_experts in NUM_EXPERTS:
                step = make_step(dtype, num_experts, layer)
                results, times = {}, {way: [] for way in WAYS}  # type: ignore[var-annotated]
                for way in WAYS:
                    with products_by(way):
                        results[way] = step()
                error = differ(results["triton"], results["per expert"])
                answer: dict[str, Any] = {"relative_error": error}
                if error < LARGEST_ERROR[dtype]:
                    for _ in range(10):
                        for way in WAYS:
                            with products_by(way):
                                times[way].append(measure(step))
                    answer |= {f"{way}_ms": statistics.median(times[way]) * 1e3 for way in WAYS}
                    answer["per expert / triton"] = statistics.median(
                        b / a for a, b in zip(times["triton"], times["per expert"], strict=True)
                    )
                found[f"{str(dtype).removeprefix('torch.')} {layer} N={num_experts}"] = answer
    return found


def products_by_other_tiles() -> dict[str, Any]:
    """Would other tiles do better in the large layer?"""
    measure = CudaClock(DEVICE)
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        size = torch.finfo(dtype).bits // 8
        step = make_step(dtype, 8, "large")
        for tiles in (None, *OTHER_TILES[size]):
            name = "as it is" if tiles is None else str([tuple(tile) for tile in tiles])
            with products_by("triton", tiles, size):
                step()
                median = statistics.median(measure(step) for _ in range(8))
            found[f"{str(dtype).removeprefix('torch.')} {name}_ms"] = median * 1e3
    return found
