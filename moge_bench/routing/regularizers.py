"""Losses that aim at what MoGE aims at, to be compared with it (docs/method.md "Controls").

Each returns a scalar, (), differentiable; 0 for an empty batch. Tokens outside ``routing.mask``
enter none. With a ``group`` a loss is that of the batch of all its ranks, as in routing/balance.py.
Legend: T tokens, N experts, k chosen, d hidden size.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from moge_bench.ops.route import Routing
from moge_bench.routing.global_batch import mean_over_tokens

REGULARIZERS = ("none", "entropy", "simbal", "orthogonality")


def normalized_entropies(scores_TN: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each row of z over log N, (T,): 1 for uniform scores, 0 for one-hot.

    Scores that do not sum to 1 (sigmoid) are divided by their sum first.
    """
    num_experts = scores_TN.shape[1]
    if num_experts == 1:
        return scores_TN.sum(-1) * 0.0
    shares = scores_TN / scores_TN.sum(-1, keepdim=True).clamp_min(1e-20)
    return -(shares * shares.clamp_min(1e-20).log()).sum(-1) / math.log(num_experts)


def entropy_loss(routing: Routing, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Minus the mean over tokens of the scores' normalised entropy, -1 to 0.

    The control arm "moe-entropy": it pulls scores towards uniform as the group norm does, without
    a map and without a border.
    """
    return -mean_over_tokens(normalized_entropies(routing.scores), routing.mask, group)


def simbal_loss(gate_weight_ND: torch.Tensor) -> torch.Tensor:
    """Sum of |R R^T - I| over N^2, R the router's rows, (N, d) (SimBal, arXiv 2506.14038).

    0 if the rows are orthonormal: then similar tokens keep similar scores and no expert's row is a
    copy of another's. Of the paper's norm it is the mean, which does not grow with N.
    """
    rows = gate_weight_ND.float()
    identity = torch.eye(rows.shape[0], dtype=rows.dtype, device=rows.device)
    return (rows @ rows.T - identity).abs().mean()


def orthogonality_loss(
    routing: Routing,
    outputs_TKD: torch.Tensor | None,
    eps: float = 1e-6,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Squared projections between outputs of a token's experts, minus the variance of the scores.

    arXiv 2505.22323, equations of its losses L_o and L_v: for experts i != j of one token the
    squared length of the projection of o_i on o_j, |<o_i, o_j>|^2 / (|o_j|^2 + eps), mean over
    tokens and ordered pairs; and the variance over tokens of each expert's score, mean over
    experts. With k = 1 there is no pair, and the variance alone is left.

    Args:
        routing: of the T tokens.
        outputs_TKD: (T, k, d), what each chosen expert returned; None for k = 1.
        eps: keeps the projection on a zero output finite.
        group: of the ranks whose batch it is.
    """
    scores, mask = routing.scores, routing.mask
    mean = mean_over_tokens(scores, mask, group)
    spread = mean_over_tokens((scores - mean).square().mean(-1), mask, group)
    if outputs_TKD is None or outputs_TKD.shape[1] < 2:
        return -spread
    outputs = outputs_TKD.float()
    products = outputs @ outputs.transpose(1, 2)
    lengths = products.diagonal(dim1=1, dim2=2)
    projections = products.square() / (lengths[:, None, :] + eps)
    k = outputs.shape[1]
    between = projections.sum((1, 2)) - projections.diagonal(dim1=1, dim2=2).sum(-1)
    return mean_over_tokens(between / (k * (k - 1)), mask, group) - spread
