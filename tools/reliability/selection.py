"""Whether the experts that the extension chose are the best, to rounding.

Softmax alone compares the logits themselves: there the choice is the reference's, bit for bit.
Scores of the wider routing are rounded by each implementation on its own, so that two experts whose
keys are a rounding apart may change places. Legend: T tokens, N experts, k chosen.
"""

from __future__ import annotations

import torch

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.self_check import DifferenceError
from tools.reliability.cases import Case

Results = dict[str, torch.Tensor]
_LEAST = -1e300  # stands for -inf, of which no difference can be taken
_ROUNDINGS = 16


def check_selection(case: Case, tensors: Results, got: Results, want: Results) -> torch.Tensor:
    """Return the rows whose experts are the reference's, (T,) bool; DifferenceError for bad ones.

    Load and first load must be those of the experts.
    """
    experts, theirs = got["experts"], want["experts"]
    if experts.shape != theirs.shape or experts.dtype != theirs.dtype:
        raise DifferenceError(f"experts are {tuple(experts.shape)} {experts.dtype}")
    num_experts = case.sizes[1]
    if experts.numel() and not 0 <= int(experts.min()) <= int(experts.max()) < num_experts:
        raise DifferenceError(f"experts go from {experts.min()} to {experts.max()}")
    for name, chosen in (("load", experts), ("first_load", experts[:, :1])):
        counted = chosen if "mask" not in tensors else chosen[tensors["mask"]]
        if not torch.equal(got[name], counted.flatten().bincount(minlength=num_experts)):
            raise DifferenceError(f"{name} is not that of the experts")
    alike = (experts == theirs).all(1)
    if alike.all():
        return alike
    choice = choice_of(case)
    if choice.score_function == "softmax" and "bias" not in tensors and not choice.limited:
        row = int((~alike).nonzero()[0])
        raise DifferenceError(
            f"experts of row {row} are {experts[row].tolist()}, the reference's "
            f"{theirs[row].tolist()}"
        )
    keys = reference.selection_keys(
        tensors["logits"], tensors.get("noise"), choice, tensors.get("bias")
    )
    for row in (~alike).nonzero().flatten().tolist():
        if not is_best(keys[row], experts[row], choice):
            raise DifferenceError(
                f"experts of row {row} are {experts[row].tolist()}, not the best to rounding; the "
                f"reference's {theirs[row].tolist()}"
            )
    return alike


def choice_of(case: Case) -> Choice:
    """Return how ``case``, of route, chooses."""
    names = ("renormalize", "score_function", "num_groups", "top_groups", "scale")
    options = {name: case.options[name] for name in names if name in case.options}
    return Choice(case.sizes[1], case.options["top_k"], **options)


def is_best(keys_N: torch.Tensor, experts_K: torch.Tensor, choice: Choice) -> bool:
    """Say whether ``experts_K`` are k best of ``keys_N`` in descending order, each to rounding.

    Of a choice limited to ranges: within at most ``top_groups`` ranges that rank best.
    """
    rounding = _ROUNDINGS * torch.finfo(keys_N.dtype).eps
    keys = torch.where(keys_N.isnan(), -torch.inf, keys_N.double())
    ranges = keys.reshape(choice.num_groups, -1)
    best = ranges.sort(descending=True).values[:, : choice.top_k // choice.top_groups]
    ranks, keys = best.sum(1).clamp_min(_LEAST), keys.clamp_min(_LEAST)
    edge = ranks.sort(descending=True).values[choice.top_groups - 1]
    near = rounding * choice.top_k * max(1.0, float(edge.abs()))
    of = experts_K // ranges.shape[1]
    if len(of.unique()) > choice.top_groups or (ranks[of] < edge - near).any():
        return False
    open_ = ranks > edge - near
    if int(open_.sum()) > choice.top_groups:  # which of the last ones is open is rounding
        open_ = ranks > edge + near
    chosen = keys[experts_K]
    room = rounding * chosen.abs().clamp_min(1)
    left = torch.ones(len(keys), dtype=torch.bool)
    left[experts_K] = False
    left &= open_.repeat_interleave(ranges.shape[1])
    descending = bool((chosen.diff() <= room[1:]).all())
    unchosen = keys[left].max() if left.any() else torch.tensor(_LEAST)
    return (
        len(experts_K.unique()) == choice.top_k
        and descending
        and bool(unchosen <= chosen[-1] + room[-1])
    )
