"""moge::group_norm: the topographic group norm of any scores, as a drop-in loss.

Public function and fake kernels of the op. Schema, kernels and autograd are in csrc/; the truth it
is tested against is ops/reference.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from moge_bench.ops import extension, masking, reference, validation
from moge_bench.ops.topography import Topography


def group_norm(
    scores: torch.Tensor,
    *,
    map_shape: tuple[int, int] | None = None,
    group_size: int | str = "auto",
    sigma: float | torch.Tensor | None = 1.0,
    stride: int = 1,
    border: str = "valid",
    reduction: str = "token_mean",
    unit_energy: bool = False,
    mask: torch.Tensor | None = None,
    nonfinite: str = "error",
    backend: str = "auto",
) -> torch.Tensor:
    """Return L_group of ``scores``: add it to any MoE model's loss to make it MoGE.

    L_group = reduce_{t,p} sqrt(sum_{u,v} G[u,v] z[t, i*s+u, j*s+v]^2 + eps), eps = 1e-8
    (MoGE, arXiv 2504.09265; docs/method.md "Group-sparse loss").

    Args:
        scores: z, (T, N), float32, float64, bfloat16 or float16, 1 <= N <= 1024, any strides and
            signs; in MoGE the softmax of the router logits over all N experts. On CUDA as in
            ``route``.
            Negative ones, the sign of raw logits, are warned of once, where the first calls of a
            process have them in their first rows, on the CPU and not compiled.
        map_shape, group_size, sigma, stride, border, reduction, unit_energy, backend: as in
            ``route``.
        mask: (T,) bool, the tokens that count; the others enter neither the loss nor its mean,
            whatever they hold. If none counts the loss is 0.
        nonfinite: "error" refuses NaN and infinite scores; "propagate" lets them into the loss.

    Returns:
        The loss, shape (), float32 (float64 for float64 scores), differentiable once, as
        ``route``. Sums over tokens are accumulated in float64, in a fixed order.

    Raises:
        TypeError, ValueError: naming the argument, what came and what would work.
    """
    validation.check_matrix("scores", scores)
    taps, topo = validation.make_groups(
        scores, map_shape, group_size, sigma, stride, border, reduction, unit_energy
    )
    return group_norm_with_taps(scores, taps, topo, mask=mask, nonfinite=nonfinite, backend=backend)


def group_norm_with_taps(
    scores: torch.Tensor,
    taps: torch.Tensor,
    topo: Topography,
    *,
    mask: torch.Tensor | None,
    nonfinite: str,
    backend: str,
) -> torch.Tensor:
    """``group_norm`` with the filter given as a tensor, (h,) float64 on the device of ``scores``.

    ``scores`` are not checked: validation.check_matrix does that, before the groups are made.
    """
    validation.check_nonfinite(nonfinite)
    validation.check_mask(mask, scores, "scores", 1)
    strict = nonfinite == "error"
    _warn_of_logits(scores, mask)
    if extension.choose_backend(backend, scores, "group_norm") == "extension":
        return extension.find_op("group_norm")(scores, taps, topo.as_ints, strict, mask=mask)
    if mask is not None:
        scores = masking.counted_rows(scores, mask)
    if strict:
        validation.check_finite("scores", scores)
    return reference.group_norm(scores, taps, topo, mask)


_CALLS_LOOKED_AT, _ROWS_LOOKED_AT = 16, 16
_calls = itertools.count()


def _warn_of_logits(scores: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Warn once if the first rows hold negative numbers: raw logits, which give a loss too.

    Sums far from 1 say nothing: those of sigmoid scores are. A mistake shows in the first calls,
    so later ones are not looked at; nor are tensors whose values cannot be had at once.
    """
    if torch.compiler.is_compiling() or next(_calls) >= _CALLS_LOOKED_AT:
        return
    if not scores.is_cpu or not validation.readable(scores):
        return
    negative = scores.detach()[:_ROWS_LOOKED_AT] < 0
    if mask is not None:
        negative = negative & mask[:_ROWS_LOOKED_AT, None]
    negative = negative.any()
    if validation.readable(negative) and negative:  # fake under FakeTensorMode
        extension.warn_once(
            "group_norm got negative scores, so plainly raw logits: pass softmax(logits), or "
            "sigmoid scores; the group norm of logits means nothing"
        )


def _group_norm_fake(scores: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return scores.new_empty((), dtype=reference.accumulation_dtype(scores.dtype))


def _group_norm_backward_fake(
    grad_loss: torch.Tensor, scores: torch.Tensor, *_: Any, **__: Any
) -> torch.Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


if extension.load()[0] is not None:
    torch.library.register_fake("moge::group_norm", _group_norm_fake)
    torch.library.register_fake("moge::group_norm_backward", _group_norm_backward_fake)
