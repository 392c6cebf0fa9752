"""Balance losses of the baselines, each a function of one ``Routing`` (METHOD.md).

Every function returns a scalar, (), that is differentiable with respect to the logits, and 0
for an empty batch. Softmax is applied once, in ``routing.scores``; no function applies it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from moge_bench.ops.route import Routing


def switch_loss(routing: Routing) -> torch.Tensor:
    """N * sum_e (fraction of tokens whose first choice is e) * (mean score of e).

    GShard (arXiv 2006.16668) and Switch Transformer (arXiv 2101.03961), eq. 4. It is 1 when
    first choices and scores are uniform, N when all go to one expert.
    """
    num_tokens, num_experts = routing.experts.shape[0], routing.load.shape[0]
    if num_tokens == 0:
        return routing.importance.sum()
    first = torch.bincount(routing.experts[:, 0], minlength=num_experts)
    fraction = first.to(routing.importance.dtype) / num_tokens
    return num_experts * (fraction * routing.importance / num_tokens).sum()


def squared_cv(values: torch.Tensor) -> torch.Tensor:
    """CV^2 = unbiased variance / mean^2 of ``values``, (N,); 0 for a single value."""
    if values.numel() < 2:
        return values.sum() * 0.0
    return values.var(unbiased=True) / values.mean().square().clamp_min(1e-20)


def vmoe_loss(routing: Routing) -> torch.Tensor:
    """(CV^2(importance) + CV^2(load)) / 2 (V-MoE, arXiv 2106.05974, appendix A).

    importance_e = sum_t z[t, e]. load_e = sum_t of the probability that e would stay among the
    top k if its noise were drawn anew: Phi((x[t, e] - threshold_t) / noise_std), with the k-th
    largest noisy logit as threshold and noise_std = 1/N. Without noise (evaluation) the load has
    no gradient and only its count enters.
    """
    if routing.experts.shape[0] == 0:
        return routing.importance.sum()
    if routing.noise is None:
        load = routing.load.to(routing.importance.dtype)
    else:
        noisy = routing.logits + routing.noise
        threshold = noisy.gather(1, routing.experts[:, -1:])
        noise_std = 1.0 / routing.load.shape[0]
        margin = (routing.logits - threshold) / noise_std
        load = (0.5 * torch.erfc(-margin / math.sqrt(2.0))).sum(dim=0)
    return (squared_cv(routing.importance) + squared_cv(load)) / 2


def z_loss(routing: Routing) -> torch.Tensor:
    """mean_t (logsumexp x)^2, the router z-loss of ST-MoE (arXiv 2202.08906), eq. 5."""
    if routing.logits.shape[0] == 0:
        return routing.logits.sum()
    return torch.logsumexp(routing.logits, dim=-1).square().mean()


def no_balance_loss(routing: Routing) -> torch.Tensor:
    """Return 0: balance by other means, such as the router's selection bias, or not at all."""
    return routing.importance.new_zeros(())


BALANCE_LOSSES: dict[str, Callable[[Routing], torch.Tensor]] = {
    "switch": switch_loss,
    "vmoe": vmoe_loss,
    "none": no_balance_loss,
}
