"""Rows of padding, in plain torch: what a mask of tokens leaves of a matrix (T, N)."""

from __future__ import annotations

import torch


def routable_rows(
    matrix: torch.Tensor, mask: torch.Tensor | None, strict: bool = True
) -> torch.Tensor:
    """Return ``matrix``, (T, N), with 0 in rows that do not count and that could not be routed.

    Those are the rows with NaN or infinity or, unless ``strict``, those whose softmax is NaN.
    Chosen by ``where``: a product with 0 would keep the NaN, in the gradient too.
    """
    if mask is None:
        return matrix
    checked = matrix if strict else matrix.amax(dim=-1, keepdim=True)
    return torch.where((mask[:, None] | checked.isfinite().all(-1, keepdim=True)), matrix, 0)


def counted_rows(matrix: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return ``matrix``, (T, N), with 0 in the rows that do not count, whatever they hold."""
    return torch.where(mask[:, None], matrix, 0)
