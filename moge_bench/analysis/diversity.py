"""Diversity: how alike the experts of a layer are.

By what they do with the same tokens, every expert with all of them and not only the routed ones;
by their weights; by their rows of the router. Of the living experts, those that a token of the
validation split chose. Legend: T tokens, N experts, d hidden size, f hidden size of an expert, m
tokens of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from moge_bench.analysis.numbers import Number, number, of_block
from moge_bench.analysis.probe import Layer
from moge_bench.ops.reference_experts import ACTIVATIONS

KERNEL_TOKENS = 512  # m: N kernels of m x m float32, 64 MiB at N = 64


def measure(layer: Layer, activation: str, load: Sequence[int]) -> list[Number]:
    """Return the diversity of one layer; ``load``, (N,): choices on the validation split.

    diversity_output_cosine: mean over tokens and pairs of experts of the cosine of their outputs.
    diversity_output_cka: mean over pairs of experts of debiased linear CKA of their outputs, on 512
    of the tokens at equal distances. 1 for equal experts; above 0 for experts that share nothing,
    since all are given the same inputs. Beside it belongs diversity_null_cka, which moves too.
    diversity_weight_cosine: of all weights and biases of an expert as one vector (blind to
    an order of the hidden units, so small for experts that did not start as copies).
    diversity_router_cosine: of the router's rows, with what all rows have in common, which a
    softmax does not see: it grows where the rest shrinks.
    """
    alive = torch.from_numpy(np.flatnonzero(load))
    outputs = expert_outputs(layer, activation, alive)
    kernels = centred_kernels(outputs)
    flat = torch.cat([
        layer.tensors[name][alive].float().flatten(1)
        for name in ("w_in", "b_in", "w_out", "b_out") if name in layer.tensors
    ], dim=1)  # fmt: skip
    found = [
        *number("diversity_output_cosine", mean_pairwise_cosine(outputs.transpose(0, 1))),
        *number("diversity_output_cka", _mean_off_diagonal(cka(kernels, kernels))),
        *number("diversity_weight_cosine", mean_pairwise_cosine(flat[None])),
    ]
    if "gate" in layer.tensors:
        gate = layer.tensors["gate"][alive][None]
        found += number("diversity_router_cosine", mean_pairwise_cosine(gate))
    return of_block(layer.block, found)


def measure_between(
    layers: tuple[Layer, Layer], activation: str, loads: tuple[Sequence[int], Sequence[int]]
) -> list[Number]:
    """Return the seed-to-seed null: how alike experts are that share nothing but the data.

    diversity_null_cka: mean CKA of a living expert of the first layer and one of the second, the
    same layer of a run with another seed; over all pairs, since no expert has a partner. Each has
    the inputs that its own run gives it for the same tokens: CKA does not see a rotation of either
    space. Those are not the same inputs, as two experts of one layer have, so it is lower for that
    alone. ``loads``: choices on the validation split, (N,) each.
    """
    layer = layers[0]
    kernels = (
        centred_kernels(expert_outputs(each, activation, torch.from_numpy(np.flatnonzero(load))))
        for each, load in zip(layers, loads, strict=True)
    )
    found = number("diversity_null_cka", float(cka(*kernels).nanmean()))
    return of_block(layer.block, found)


def expert_outputs(
    layer: Layer, activation: str, experts: torch.Tensor | None = None
) -> torch.Tensor:
    """Return FFN_e(x_t) of ``experts``, (n,) int64 or None for all, and tokens: (n, T, d)."""
    names = ("inputs", "w_in", "w_out")
    x, w_in, w_out = (layer.tensors[name].float() for name in names)
    b_in, b_out = (layer.tensors.get(name) for name in ("b_in", "b_out"))
    chosen = range(len(w_in)) if experts is None else experts.tolist()
    outputs = torch.empty(len(chosen), *x.shape)
    for i, e in enumerate(chosen):  # one at a time: the hidden activations of all would not fit
        hidden = F.linear(x, w_in[e], None if b_in is None else b_in[e].float())
        bias = None if b_out is None else b_out[e].float()
        outputs[i] = F.linear(ACTIVATIONS[activation](hidden), w_out[e], bias)
    return outputs


def mean_pairwise_cosine(vectors: torch.Tensor) -> float:
    """Return the mean cosine of two of the n vectors of a set, over all sets, (sets, n, size).

    sum_{i != j} u_i . u_j = |sum_i u_i|^2 - n for unit vectors. NaN for a single vector.
    """
    count = vectors.shape[1]
    if count < 2:
        return math.nan
    sums = F.normalize(vectors, dim=2).sum(1)
    squares = sums.square().sum(1).double()
    return float((squares - count).mean() / (count * (count - 1)))


def centred_kernels(outputs: torch.Tensor) -> torch.Tensor:
    """Return the U-centred linear kernel of every expert's outputs, (N, T, d): (N, m * m) float32.

    Of m tokens at equal distances. U-centring (Szekely and Rizzo, "Partial distance correlation",
    2014) makes the mean of the product of two such kernels Song et al.'s unbiased estimate of HSIC
    ("Feature selection via dependence maximization", 2012). Scaled to norm 1.
    """
    tokens = outputs.shape[1]
    count = min(KERNEL_TOKENS, tokens)
    if count < 4:
        raise ValueError(f"CKA needs at least 4 tokens, the probe has {tokens}")
    chosen = outputs[:, torch.arange(count) * tokens // count].float()
    chosen = chosen - chosen.mean(1, keepdim=True)  # no kernel changes, and float32 is enough
    kernels = torch.empty(len(chosen), count, count)
    for kernel, features in zip(kernels, chosen, strict=True):
        torch.mm(features, features.T, out=kernel)
        kernel.fill_diagonal_(0.0)
        rows = kernel.sum(1) / (count - 2)
        kernel += kernel.sum() / ((count - 1) * (count - 2)) - rows
        kernel -= rows[:, None]
        kernel.fill_diagonal_(0.0)
        kernel /= kernel.norm()
    return kernels.flatten(1)


def cka(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return debiased linear CKA of every pair of ``centred_kernels``, (N, m * m) each: (N, N).

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the unbiased HSIC (Kornblith et al., "Similarity
    of neural network representations revisited", 2019; debiased as in Nguyen et al. 2021). NaN for
    an expert whose outputs do not depend on the token.
    """
    return first @ second.T


def _mean_off_diagonal(values: torch.Tensor) -> float:
    """Return the mean of the defined values off the diagonal of (N, N); NaN where there is none."""
    off = ~torch.eye(len(values), dtype=torch.bool)
    return float(values[off].nanmean())
