"""The tensors of a case: values of each kind, laid out in memory in each way."""

from __future__ import annotations

import random

import torch

from tools.reliability.cases import Case

_NONFINITE = (torch.nan, torch.inf, -torch.inf)


def values(
    kind: str, size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Return float64 numbers of ``kind`` that ``dtype`` holds, of this size.

    "huge" are a hundredth of the largest number or near its root, "denormal" below the smallest
    normal one; "mixed" has all of them; in "nonfinite" one in ten rows has some NaN or infinity.
    """
    info = torch.finfo(dtype)
    normal = torch.randn(size, generator=generator, dtype=torch.float64)
    if kind in ("small", "normal", "wide"):
        return normal * {"small": 0.1, "normal": 1.0, "wide": 10.0}[kind]
    if kind == "ties":
        return torch.randint(-2, 3, size, generator=generator).double()
    # Squares of the first are a millionth of the largest number, those of the second overflow.
    squared = bool(torch.rand((), generator=generator) < 0.5)
    huge = normal * ((info.max / 1e6) ** 0.5 if squared else info.max / 100)
    tiny = normal * info.smallest_normal / 16
    if kind == "huge":
        return huge.clamp(-info.max, info.max)
    if kind == "denormal":
        return tiny
    which = torch.rand(size, generator=generator)
    if kind == "mixed":
        mixed = torch.where(which < 0.2, huge.clamp(-info.max, info.max), normal)
        return torch.where(which > 0.7, tiny, mixed)
    rows = torch.rand(size[:1], generator=generator) < 0.1
    everywhere, few, masked = torch.rand(3, generator=generator).tolist()
    if everywhere < 0.2:
        rows[:] = True
    chosen = torch.randint(0, 3, size, generator=generator)
    odd = torch.tensor(_NONFINITE, dtype=torch.float64)[chosen]
    share = 0.02 if few < 0.5 else 0.6
    if masked < 0.4:
        odd = torch.full(size, -torch.inf, dtype=torch.float64)  # masked experts
    there = (which < share) & rows.reshape(-1, *[1] * (len(size) - 1))
    return torch.where(there, odd, normal)


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a view of a larger storage with the values of ``tensor``, or of its first row or one.

    Around what is viewed the storage holds NaN (the least number of an integer dtype), which a
    kernel that reads beyond would bring into its results.
    """
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor
    if layout == "rows repeated":
        return tensor[:1].clone().expand(tensor.shape) if len(tensor) else tensor
    if layout == "one value":
        if tensor.numel() == 0:
            return tensor
        return tensor.flatten()[:1].clone().reshape((1,) * tensor.dim()).expand(tensor.shape)
    if layout == "transposed":
        order = tuple(reversed(range(tensor.dim())))
        return tensor.permute(order).contiguous().permute(order)
    around = _around(tensor.dtype)
    if layout == "offset":
        storage = torch.full((tensor.numel() + 7,), around, dtype=tensor.dtype)
        view = storage[3 : 3 + tensor.numel()].view(tensor.shape)
    else:
        larger = torch.full([2 * n + 1 for n in tensor.shape], around, dtype=tensor.dtype)
        view = larger[tuple(slice(1, 2 * n + 1, 2) for n in tensor.shape)]
    return view.copy_(tensor)


def _around(dtype: torch.dtype) -> float | bool | int:
    if dtype == torch.bool:
        return True
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min


def make(case: Case) -> dict[str, torch.Tensor]:
    """Return the tensors of ``case`` by name."""
    rng = random.Random(f"{case.seed}/{case.index}/tensors")
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    tensors = (
        _experts(case, rng, generator) if case.op == "expert_ffn" else _matrix(case, rng, generator)
    )
    return {
        name: laid_out(tensor, case.layouts.get(name, "contiguous"))
        for name, tensor in tensors.items()
    }


def _matrix(case: Case, rng: random.Random, generator: torch.Generator) -> dict[str, torch.Tensor]:
    num_tokens, num_experts = case.sizes
    first = "logits" if case.op == "route" else "scores"
    matrix = values(case.kind, case.sizes, case.dtype, generator)
    if first == "scores" and rng.random() < 0.8:
        matrix = matrix.abs()
    found = {first: matrix.to(case.dtype)}
    if "noise" in case.layouts:
        kind = case.kind if rng.random() < 0.3 else "normal"
        dtype = rng.choice((case.dtype, torch.float32))
        found["noise"] = values(kind, case.sizes, dtype, generator).to(dtype)
    if "bias" in case.layouts:
        kind = rng.choice(("small", "ties", "nonfinite"))
        dtype = rng.choice((case.dtype, torch.float32))
        found["bias"] = values(kind, (num_experts,), dtype, generator).to(dtype)
    if "mask" in case.layouts:
        share = rng.choice((0.0, 0.5, 1.0))
        found["mask"] = torch.rand(num_tokens, generator=generator) < share
    return found


def _experts(case: Case, rng: random.Random, generator: torch.Generator) -> dict[str, torch.Tensor]:
    num_tokens, hidden, ffn, num_experts, top_k = case.sizes
    found = {"x": values(case.kind, (num_tokens, hidden), case.dtype, generator)}
    sizes = {"w_in": (num_experts, ffn, hidden), "w_out": (num_experts, hidden, ffn),
             "b_in": (num_experts, ffn), "b_out": (num_experts, hidden)}  # fmt: skip
    for name, size in sizes.items():
        if name in case.layouts:
            found[name] = torch.randn(size, generator=generator, dtype=torch.float64)
    if case.kind in ("huge", "mixed"):
        # x alone is huge, lest products overflow, and one sign, lest what is left of a sum be the
        # rounding of what went into it.
        found |= {"x": found["x"].abs().clamp_max(1e12), "w_in": found["w_in"].abs()}
    found = {name: tensor.to(case.dtype) for name, tensor in found.items()}
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    weights = torch.rand((num_tokens, top_k), generator=generator, dtype=torch.float64)
    found["weights"] = weights.to(rng.choice((wide, case.dtype)))
    experts = torch.randint(0, num_experts, (num_tokens, top_k), generator=generator)
    dropped = torch.rand(experts.shape, generator=generator) < case.options["dropped"]
    experts[dropped] = -1
    found["experts"] = experts.to(getattr(torch, case.options["index_dtype"]))
    return found
