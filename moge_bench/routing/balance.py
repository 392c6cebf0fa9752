"""Balance losses of the baselines, each a function of one ``Routing`` (docs/method.md).

Every function returns a scalar, (), that is differentiable with respect to the logits, and 0
for an empty batch. Softmax is applied once, in ``routing.scores``; no function applies it again.
Tokens outside ``routing.mask`` enter none of them, nor any mean. Legend: T tokens, N experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from moge_bench.ops.route import Routing


def _num_counted(routing: Routing) -> int | torch.Tensor:
    """Return how many tokens count, at least 1: an int, or () int64 where there is a mask."""
    if routing.mask is None:
        return routing.experts.shape[0]
    return routing.mask.sum().clamp_min(1)


def switch_loss(routing: Routing) -> torch.Tensor:
    """N * sum_e (fraction of tokens whose first choice is e) * (mean score of e).

    GShard (arXiv 2006.16668) and Switch Transformer (arXiv 2101.03961), eq. 4. It is 1 when
    first choices and scores are uniform, N when all go to one expert.
    """
    if routing.experts.shape[0] == 0:
        return routing.importance.sum()
    num_tokens, num_experts = _num_counted(routing), routing.load.shape[0]
    fraction = routing.first_load.to(routing.importance.dtype) / num_tokens
    return num_experts * (fraction * routing.importance / num_tokens).sum()


def squared_cv(values: torch.Tensor) -> torch.Tensor:
    """CV^2 = unbiased variance / mean^2 of ``values``, (N,); 0 for a single value."""
    if values.numel() < 2:
        return values.sum() * 0.0
    return values.var(unbiased=True) / values.mean().square().clamp_min(1e-20)


def vmoe_loss(routing: Routing) -> torch.Tensor:
    """(CV^2(importance) + CV^2(load)) / 2 (V-MoE, arXiv 2106.05974, appendix A).

    importance_e = sum_t z[t, e]. load_e = sum_t of the probability that e would stay among the
    top k if its noise were drawn anew: Phi((x[t, e] - threshold[t, e]) / noise_std), noise_std =
    1/N. Without a selection bias the threshold is the k-th largest noisy logit. Without noise
    (evaluation) the load has no gradient and only its count enters.
    """
    if routing.experts.shape[0] == 0:
        return routing.importance.sum()
    if routing.noise is None:
        load = routing.load.to(routing.importance.dtype)
    else:
        noise_std = 1.0 / routing.load.shape[0]
        margin = (routing.logits - _threshold(routing, routing.noise)) / noise_std
        chance = 0.5 * torch.erfc(-margin / math.sqrt(2.0))
        if routing.mask is not None:
            chance = torch.where(routing.mask[:, None], chance, 0)
        load = chance.sum(dim=0)
    return (squared_cv(routing.importance) + squared_cv(load)) / 2


def _threshold(routing: Routing, noise: torch.Tensor) -> torch.Tensor:
    """Return the noisy logit above which an expert is chosen, (T, 1), or (T, N) with a bias.

    With a bias b an expert stays if softmax(y)_e + b_e is above that of the last one chosen, l.
    With y = x + noise and its logsumexp held, that is y_e > y_l + log(1 + (b_l - b_e) / z_l), z =
    softmax(y); if z_l + b_l <= b_e, e stays whatever its noise.
    """
    noisy = routing.logits + noise
    last = routing.experts[:, -1:]
    threshold = noisy.gather(1, last)
    if routing.bias is None:
        return threshold
    bias = routing.bias.to(noisy.dtype)
    # 1 / z_l, kept from overflow: 0 * inf would be NaN where the biases are equal.
    inverse = torch.exp((noisy.logsumexp(-1, keepdim=True) - threshold).clamp_max(80.0))
    ratio = (bias[last] - bias) * inverse
    always = ratio <= -1.0
    shifted = threshold + torch.log1p(torch.where(always, 0.0, ratio))
    return torch.where(always, -torch.inf, shifted)


def z_loss(routing: Routing) -> torch.Tensor:
    """mean_t (logsumexp x)^2, the router z-loss of ST-MoE (arXiv 2202.08906), eq. 5."""
    if routing.logits.shape[0] == 0:
        return routing.logits.sum()
    squares = torch.logsumexp(routing.logits, dim=-1).square()
    if routing.mask is None:
        return squares.mean()
    return torch.where(routing.mask, squares, 0).sum() / _num_counted(routing)


def no_balance_loss(routing: Routing) -> torch.Tensor:
    """Return 0: balance by other means, such as the router's selection bias, or not at all."""
    return routing.importance.new_zeros(())


BALANCE_LOSSES: dict[str, Callable[[Routing], torch.Tensor]] = {
    "switch": switch_loss,
    "vmoe": vmoe_loss,
    "none": no_balance_loss,
}
