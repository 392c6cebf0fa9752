"""How the output f_l(x) of MoE layer l joins the residual stream: plain, momentum or Adam.

The layers of a network are read as steps of an optimiser, f_l as its (negative) gradient
(MomentumSMoE, arXiv 2410.14574). Legend: l layer, f its output, x the stream, all (..., d).
"""

from __future__ import annotations

import torch

from moge_bench.ops.count_load import is_recomputation

_EPS = 1e-8  # as in the authors' code, under the root


class Residual:
    """Plain residual connection, x <- x + f, and the interface of the others.

    One object is shared by all MoE layers of a model. What it carries from layer to layer lives
    for one forward pass: layer 0 starts from zero, the last layer forgets.
    """

    def increment(self, layer: int, output: torch.Tensor) -> torch.Tensor:
        """Return what is added to the stream for ``output`` = f_l(x); called in layer order."""
        return output


class MomentumResidual(Residual):
    """p_l = mu p_{l-1} + gamma_2 f_l(x);  x <- x + gamma_1 p_l.

    Activation checkpointing needs use_reentrant=False, which stops to recompute a block as soon as
    it has what backward reads; the sums with the momentum, which come last, keep nothing for it.

    Args:
        num_layers: MoE layers in the model.
        mu, gamma1, gamma2: as in the equation; p_{-1} = 0.
    """

    def __init__(self, num_layers: int, *, mu: float, gamma1: float, gamma2: float) -> None:
        self.num_layers, self.mu, self.gamma1, self.gamma2 = num_layers, mu, gamma1, gamma2
        self._momentum: torch.Tensor | None = None

    def increment(self, layer: int, output: torch.Tensor) -> torch.Tensor:
        """Return gamma_1 p_l."""
        return self.gamma1 * self._next_momentum(layer, output)

    def _next_momentum(self, layer: int, output: torch.Tensor) -> torch.Tensor:
        momentum = self.gamma2 * output
        if layer > 0:
            if is_recomputation():  # which use_reentrant=False ends before it comes here
                raise RuntimeError(
                    f"{type(self).__name__} passes its momentum from layer to layer outside the "
                    "blocks' arguments, so a reentrant checkpoint of a block cuts off its "
                    "gradient; call checkpoint(..., use_reentrant=False)"
                )
            assert self._momentum is not None
            momentum = self.mu * self._momentum + momentum
        if not is_recomputation():
            self._momentum = momentum if layer + 1 < self.num_layers else None
        return momentum


class AdamResidual(MomentumResidual):
    """Adam in layer 0, momentum in the rest.

    Layer 0: m = (1 - beta1) f, v = (1 - beta2) f^2, x <- x + gamma_1 m / sqrt(v + 1e-8); the
    momentum p starts there as well, so that layer 1 continues from gamma_2 f_0.

    Deviations from the authors' code: its layer 0 subtracts x from the stream as well (its output
    is x - (update + x), then normalised), which docs/method.md does not list; and its sign is the
    opposite one, which the experts' last linear map absorbs.
    """

    def __init__(
        self, num_layers: int, *, mu: float, gamma1: float, gamma2: float,
        beta1: float, beta2: float,
    ) -> None:  # fmt: skip
        super().__init__(num_layers, mu=mu, gamma1=gamma1, gamma2=gamma2)
        self.beta1, self.beta2 = beta1, beta2

    def increment(self, layer: int, output: torch.Tensor) -> torch.Tensor:
        """Return the Adam step in layer 0 and gamma_1 p_l in the others."""
        momentum = self._next_momentum(layer, output)
        if layer > 0:
            return self.gamma1 * momentum
        first, second = (1 - self.beta1) * output, (1 - self.beta2) * output.square()
        return self.gamma1 * first / torch.sqrt(second + _EPS)
