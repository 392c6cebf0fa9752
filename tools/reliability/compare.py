"""Runs a case with extension and reference, and says in one sentence where they do not agree.

What must be the same: the text of an error, the places of NaN and infinity, and every number within
the tolerance of ops.self_check, or with at most four times the error that the reference has in that
dtype: where all terms cancel, both are a few roundings of terms, the reference's one by chance.

Legend: T tokens, N experts, k chosen.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch

from moge_bench import group_norm, route
from moge_bench.ops import reference
from moge_bench.ops.expert_ffn import expert_ffn
from moge_bench.ops.self_check import TOLERANCES, DifferenceError, difference
from moge_bench.ops.topography import Topography, gaussian_taps
from tools.reliability import inputs
from tools.reliability.cases import Case
from tools.reliability.selection import check_selection, choice_of

Results = dict[str, torch.Tensor]
# Four times those of self_check, whose 17 shapes do not reach as far into the tail.
_SLACK = 4
_TOLERANCES = {**TOLERANCES, torch.float16: 2e-3}
_INPUTS = {"route": ("logits",), "group_norm": ("scores",),
           "expert_ffn": ("x", "weights", "w_in", "b_in", "w_out", "b_out")}  # fmt: skip


def disagreement(case: Case) -> str | None:
    """Return where extension and reference differ on ``case``, or None where they agree."""
    tensors = inputs.make(case)
    got = _outcome(case, tensors, "extension")
    if case.op != "expert_ffn":
        tensors = {name: flushed(tensor, case.dtype) for name, tensor in tensors.items()}
    want = _outcome(case, tensors, "reference")
    if isinstance(got, str) or isinstance(want, str):
        ours, theirs = (each if isinstance(each, str) else "no error" for each in (got, want))
        return None if ours == theirs else f"{case}: {ours}; the reference: {theirs}"
    try:
        _check(case, tensors, got, want)
    except DifferenceError as error:
        return f"{case}: {error}"
    return None


def flushed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``tensor`` with 0 for numbers that are subnormal in what ``dtype`` is computed in.

    So the router's kernels take them (csrc/cpu/tile.h, FlushSubnormals).
    """
    if not tensor.is_floating_point():
        return tensor
    least = torch.finfo(reference.accumulation_dtype(dtype)).smallest_normal
    return tensor.masked_fill(tensor.double().abs() < least, 0)


def _outcome(case: Case, tensors: Results, backend: str) -> Results | str:
    try:
        return run(case, tensors, backend)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def run(case: Case, tensors: Results, backend: str) -> Results:
    """Return what the op of ``case`` gives, and the gradients of ``case.backward``."""
    leaves = {
        name: tensors[name].detach().requires_grad_()
        for name in _INPUTS[case.op]
        if name in tensors
    }
    named: dict[str, Any] = {**tensors, **leaves}
    results: Results = {}
    if case.op == "route":
        routing = route(named.pop("logits"), backend=backend, **case.options, **named)
        results = {name: getattr(routing, name) for name in ("experts", "load", "first_load")}
        outputs = {name: getattr(routing, name) for name in ("weights", "importance", "group_loss")}
    elif case.op == "group_norm":
        loss = group_norm(backend=backend, **case.options, **named)
        outputs = {"group_loss": loss}
    else:
        parameters: list[Any] = [named.get(name) for name in ("w_in", "b_in", "w_out", "b_out")]
        y = expert_ffn(
            named["x"], named["weights"], named["experts"], *parameters,
            activation=case.options["activation"], backend=backend,
        )  # fmt: skip
        outputs = {"y": y}
    results |= {name: output.detach() for name, output in outputs.items()}
    differentiated = {name: outputs[name] for name in case.backward}
    upstream = [_upstream(case, name, output) for name, output in differentiated.items()]
    grads = torch.autograd.grad(
        list(differentiated.values()), list(leaves.values()), upstream, materialize_grads=True,
        allow_unused=True,
    )  # fmt: skip
    return results | {
        f"the gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)
    }


def _upstream(case: Case, name: str, output: torch.Tensor) -> torch.Tensor:
    """Return dL/doutput: from 1 to 2, for a loss over what it is divided by.

    So gradients are near 1, and what cancels in them leaves no more than a rounding of that.
    """
    rng = random.Random(f"{case.seed}/{case.index}/{name}")
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    found = 1 + torch.rand(output.shape, generator=generator, dtype=torch.float64)
    if name == "group_loss":
        found = found / (topography_of(case).scale(case.sizes[0]) or 1.0)
    return inputs.laid_out(found.to(output.dtype), case.layouts.get("upstream", "contiguous"))


def topography_of(case: Case) -> Topography:
    """Return the map and groups of ``case``, of route with groups or of group_norm."""
    rows, cols = case.options["map_shape"]
    names = ("group_size", "stride", "border", "reduction", "unit_energy")
    return Topography(rows, cols, **{name: case.options[name] for name in names})


def _check(case: Case, tensors: Results, got: Results, want: Results) -> None:
    """Raise DifferenceError for the first result that is not the reference's."""
    alike = check_selection(case, tensors, got, want) if case.op == "route" else None
    clean = _clean_rows(case, tensors, want)
    exact: Results = {}
    for name, theirs in want.items():
        if name in ("experts", "load", "first_load"):
            continue
        rows = alike if name == "weights" else None
        if name in ("the gradient of logits", "the gradient of scores"):
            rows = clean if alike is None or clean is None else clean & alike
        ours = got[name]
        try:
            _same(name, case, *_rows(rows, ours, theirs))
        except DifferenceError:
            if "gradient" in name and _at_a_kink(case, tensors):
                continue
            exact = exact or _exact(case, tensors)
            if alike is not None and rows is not None:  # in float64 others may be chosen
                rows = rows & (exact["experts"] == got["experts"]).all(1)
            if not _four_times_at_most(*_rows(rows, ours, theirs, exact[name])):
                raise


def _clean_rows(case: Case, tensors: Results, want: Results) -> torch.Tensor | None:
    """Return the rows whose gradient says something, (T,) bool: scores and norms are finite there.

    None: all of them, or an op without rows of its own.
    """
    if case.op == "route":
        scores = reference.scores(tensors["logits"], choice_of(case).score_function)
        return scores.isfinite().all(1)
    if case.op == "expert_ffn" or want["group_loss"].isfinite():
        return None
    scores = tensors["scores"].to(want["group_loss"].dtype)
    taps = gaussian_taps(case.options["group_size"], case.options["sigma"])
    return reference.group_norms(scores, taps, topography_of(case)).isfinite().all(1)


def _rows(rows: torch.Tensor | None, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor if rows is None else tensor[rows] for tensor in tensors]


def _same(name: str, case: Case, got: torch.Tensor, want: torch.Tensor) -> None:
    """Compare the places of NaN and infinity, and what is finite by ops.self_check.

    NaN and infinity are told apart in weights and importance; elsewhere the order of a sum, or a
    tap of the filter that underflows, decides which of them it is.
    """
    if got.shape == want.shape:
        odd = ~want.isfinite()
        if not torch.equal(odd, ~got.isfinite()):
            place = int((odd != ~got.isfinite()).flatten().nonzero()[0])
            ours, theirs = got.flatten()[place].item(), want.flatten()[place].item()
            raise DifferenceError(f"{name} is {ours} at {place}, the reference's {theirs}")
        if odd.any():
            if name in ("weights", "importance") and not torch.equal(
                got[odd].nan_to_num(0.5), want[odd].nan_to_num(0.5)
            ):
                raise DifferenceError(f"{name} has infinity where the reference has NaN")
            got, want = (tensor.masked_fill(odd, 0) for tensor in (got, want))
    if got.numel() or got.shape != want.shape:
        # Experts give values near 1, less where their terms cancel.
        least = 0.1 if name == "y" else torch.finfo(want.dtype).tiny
        difference(name, got, want, _SLACK * _TOLERANCES[case.dtype], least)


def _at_a_kink(case: Case, tensors: Results) -> bool:
    """Say whether some input of a relu is 0 to rounding, where the derivative is either of two."""
    if case.op != "expert_ffn" or case.options["activation"] != "relu":
        return False
    x, w_in = tensors["x"].double(), tensors["w_in"].double()
    bias = tensors["b_in"].double() if "b_in" in tensors else x.new_zeros(w_in.shape[:2])
    hidden = torch.einsum("td,nfd->tnf", x, w_in) + bias
    size = torch.einsum("td,nfd->tnf", x.abs(), w_in.abs()) + bias.abs()
    return bool((hidden.abs() <= 8 * torch.finfo(case.dtype).eps * size).any())


def _exact(case: Case, tensors: Results) -> Results:
    """Return the reference's results in float64, of the same numbers."""
    wide = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    return run(dataclasses.replace(case, dtype=torch.float64), wide, "reference")


def _four_times_at_most(got: torch.Tensor, want: torch.Tensor, truth: torch.Tensor) -> bool:
    """Say whether the error of ``got`` is at most 4 times that of ``want``, taken as one rounding.

    Or more: on one number the reference's error is now and then 0 by chance.
    """
    if got.numel() == 0:
        return True
    finite = truth.isfinite()
    unit = torch.finfo(got.dtype).eps / 2 * truth[finite].abs().amax() if finite.any() else 0
    error, theirs = ((tensor.double() - truth).abs().max() for tensor in (got, want))
    return bool(error <= 4 * torch.maximum(theirs, torch.as_tensor(unit, dtype=torch.float64)))
