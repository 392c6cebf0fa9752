"""Balance losses of the baselines, each a function of one ``Routing`` (docs/method.md).

Every function returns a scalar, (), that is differentiable with respect to the logits, and 0
for an empty batch. Softmax is applied once, in ``routing.scores``; no function applies it again.
With sigmoid or sqrt-softplus scores ``importance`` is of scores divided by their sum over experts.
Tokens outside ``routing.mask`` enter none of them, nor any mean. With a ``group`` the loss is that
of the batch of all its ranks, equal on each (routing/global_batch.py): all of them must call it,
one without a token too. Legend: T tokens, N experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from moge_bench.ops.reference import activation
from moge_bench.ops.route import Routing
from moge_bench.routing.global_batch import at_least_one, mean_over_tokens, sum_over_ranks

# erfc is 1e-29 there: nothing beside 1 in float32, nor beside what another loss gives a logit.
# Where it or its derivative underflows, as for most experts of most tokens, a CPU takes five times
# as long for it: 5 % of a step of tiny-vit.
_CERTAIN = 8.0


def num_counted(routing: Routing) -> int | torch.Tensor:
    """Return how many tokens of this rank count: an int, or () int64 where there is a mask."""
    return routing.experts.shape[0] if routing.mask is None else routing.mask.sum()


def switch_loss(routing: Routing, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """N * sum_e (fraction of tokens whose first choice is e) * (mean score of e).

    GShard (arXiv 2006.16668) and Switch Transformer (arXiv 2101.03961), eq. 4. It is 1 when
    first choices and scores are uniform, N when all go to one expert.
    """
    if routing.experts.shape[0] == 0 and group is None:
        return routing.importance.sum()
    importance, first_load, num_tokens = sum_over_ranks(
        group, routing.importance, routing.first_load, num_counted(routing)
    )
    num_tokens = at_least_one(num_tokens)
    fraction = first_load.to(importance.dtype) / num_tokens
    return routing.load.shape[0] * (fraction * importance / num_tokens).sum()


def squared_cv(values: torch.Tensor) -> torch.Tensor:
    """CV^2 = unbiased variance / mean^2 of ``values``, (N,); 0 for a single value."""
    if values.numel() < 2:
        return values.sum() * 0.0
    return values.var(unbiased=True) / values.mean().square().clamp_min(1e-20)


def vmoe_loss(routing: Routing, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """(CV^2(importance) + CV^2(load)) / 2 (V-MoE, arXiv 2106.05974, appendix A).

    importance_e = sum_t z[t, e]. load_e = sum_t of the probability that e would stay among the
    top k if its noise were drawn anew: Phi((x[t, e] - threshold[t, e]) / noise_std), noise_std =
    1/N. Without a selection bias the threshold is the k-th largest noisy logit. Without noise
    (evaluation) the load has no gradient and only its count enters.

    Raises ValueError where there is noise and the choice is limited to ranges of experts: whether
    an expert stays then depends on the noise of others, and the paper has no load for it.
    """
    if routing.experts.shape[0] == 0 and group is None:
        return routing.importance.sum()
    if routing.noise is None:
        load = routing.load.to(routing.importance.dtype)
    else:
        if routing.limited:
            raise ValueError(
                "vmoe_loss knows no load of choices limited to ranges of experts (top_groups < "
                "num_groups): take another balance loss, or route without noise"
            )
        noise_std = 1.0 / routing.load.shape[0]
        margin = (routing.logits - _threshold(routing, routing.noise)) / noise_std
        chance = 0.5 * torch.erfc((-margin / math.sqrt(2.0)).clamp(-_CERTAIN, _CERTAIN))
        if routing.mask is not None:
            chance = torch.where(routing.mask[:, None], chance, 0)
        load = chance.sum(dim=0)
    importance, load = sum_over_ranks(group, routing.importance, load)
    return (squared_cv(importance) + squared_cv(load)) / 2


def _threshold(routing: Routing, noise: torch.Tensor) -> torch.Tensor:
    """Return the noisy logit above which an expert is chosen, (T, 1), or (T, N) with a bias.

    With a bias b an expert stays if f(y)_e + b_e is above that of the last one chosen, l, with y =
    x + noise: if y_e > f^-1(f(y_l) + b_l - b_e), softmax's sum held. Below the values of f it stays
    whatever its noise, above them it never does.
    """
    noisy = routing.logits + noise
    last = routing.experts[:, -1:].to(torch.int64)
    threshold = noisy.gather(1, last)
    if routing.bias is None:
        return threshold
    bias = routing.bias.to(noisy.dtype)
    ahead = bias[last] - bias  # (T, N)
    return _THRESHOLDS[routing.score_function](noisy, threshold, ahead)


def _softmax_threshold(
    noisy: torch.Tensor, threshold: torch.Tensor, ahead: torch.Tensor
) -> torch.Tensor:
    """y_l + log(1 + (b_l - b_e) / z_l), which is f^-1 of softmax with its logsumexp held."""
    # 1 / z_l, kept from overflow: 0 * inf would be NaN where the biases are equal.
    inverse = torch.exp((noisy.logsumexp(-1, keepdim=True) - threshold).clamp_max(80.0))
    ratio = ahead * inverse
    always = ratio <= -1.0
    shifted = threshold + torch.log1p(torch.where(always, 0.0, ratio))
    return torch.where(always, -torch.inf, shifted)


def _sigmoid_threshold(
    _: torch.Tensor, threshold: torch.Tensor, ahead: torch.Tensor
) -> torch.Tensor:
    """log v - log(1 - v) for v = sigmoid(y_l) + b_l - b_e."""
    value, rest = torch.sigmoid(threshold) + ahead, torch.sigmoid(-threshold) - ahead
    inside = (value > 0) & (rest > 0)
    shifted = torch.where(inside, value, 0.5).log() - torch.where(inside, rest, 0.5).log()
    shifted = torch.where(inside, shifted, torch.where(value > 0, torch.inf, -torch.inf))
    return torch.where(ahead == 0, threshold, shifted)


def _sqrtsoftplus_threshold(
    _: torch.Tensor, threshold: torch.Tensor, ahead: torch.Tensor
) -> torch.Tensor:
    """log(exp(v^2) - 1) for v = sqrt(softplus(y_l)) + b_l - b_e."""
    value = activation(threshold, "sqrtsoftplus") + ahead
    square = value.clamp_min(1e-15).square()  # its square is no subnormal number
    shifted = square + torch.log(-torch.expm1(-square))
    shifted = torch.where(value > 0, shifted, -torch.inf)
    return torch.where(ahead == 0, threshold, shifted)


_THRESHOLDS = {
    "softmax": _softmax_threshold,
    "sigmoid": _sigmoid_threshold,
    "sqrtsoftplus": _sqrtsoftplus_threshold,
}


def z_loss(routing: Routing, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """mean_t (logsumexp x)^2, the router z-loss of ST-MoE (arXiv 2202.08906), eq. 5."""
    if routing.logits.shape[0] == 0 and group is None:
        return routing.logits.sum()
    squares = torch.logsumexp(routing.logits, dim=-1).square()
    if routing.mask is None and group is None:
        return squares.mean()
    return mean_over_tokens(squares, routing.mask, group)


def no_balance_loss(routing: Routing, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Return 0: balance by other means, such as the router's selection bias, or not at all."""
    return routing.importance.new_zeros(())


BALANCE_LOSSES: dict[str, Callable[[Routing, dist.ProcessGroup | None], torch.Tensor]] = {
    "switch": switch_loss,
    "vmoe": vmoe_loss,
    "none": no_balance_loss,
}
