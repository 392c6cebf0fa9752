"""moge::route: softmax, top-k and the topographic group norm in one pass over the logits.

Public function and fake kernels of the op. Schema, kernels and autograd are in csrc/; the truth it
is tested against is ops/reference.py. Legend: T tokens, N experts, k chosen, h group side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moge_bench.ops import extension, masking, pytrees, reference, validation
from moge_bench.ops.choice import Choice, make_choice
from moge_bench.ops.topography import Topography


class Routing:
    """What one call of the router decided; see ``route`` for every field.

    A pytree: its tensors pass through torch.compile, torch.export, DDP and FSDP. ``logits``,
    ``noise``, ``bias`` and ``mask`` are what was routed, ``score_function`` and ``limited`` (some
    experts could not be chosen for their range) how.
    """

    __slots__ = (
        "_logits", "_noise", "_scores", "_unclean", "backend", "bias", "experts", "first_load",
        "group_loss", "importance", "limited", "load", "mask", "score_function", "weights",
    )  # fmt: skip

    def __init__(
        self,
        weights: torch.Tensor,
        experts: torch.Tensor,
        importance: torch.Tensor,
        group_loss: torch.Tensor,
        load: torch.Tensor,
        first_load: torch.Tensor,
        logits: torch.Tensor,
        noise: torch.Tensor | None,
        backend: str,
        bias: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
        score_function: str = "softmax",
        limited: bool = False,
        unclean: bool | None = None,
    ) -> None:
        self.weights = weights
        self.experts = experts
        self.importance = importance
        self.group_loss = group_loss
        self.load = load
        self.first_load = first_load
        self._logits = logits
        self._noise = noise
        self._unclean = unclean  # None, or the strictness that padding is still to be cleaned by
        self.backend = backend
        self.bias = bias
        self.mask = mask
        self._scores = scores
        self.score_function = score_function
        self.limited = limited

    def _clean(self) -> None:
        if self._unclean is None:
            return
        self._logits = masking.routable_rows(self._logits, self.mask, self._unclean)
        if self._noise is not None:
            self._noise = masking.routable_rows(self._noise, self.mask)
        self._unclean = None

    @property
    def logits(self) -> torch.Tensor:
        """x, (T, N), as given; rows of padding that could not be routed are 0."""
        self._clean()
        return self._logits

    @property
    def noise(self) -> torch.Tensor | None:
        """The noise, (T, N) or None, as given; rows of padding that are not finite are 0."""
        self._clean()
        return self._noise

    @property
    def scores(self) -> torch.Tensor:
        """z = f(logits) without noise, (T, N), differentiable; computed on first access."""
        if self._scores is None:
            self._scores = reference.scores(self.logits, self.score_function)
        return self._scores

    def __repr__(self) -> str:
        tokens, top_k = self.experts.shape
        num_experts = self.load.shape[0]
        return f"Routing({tokens=}, {num_experts=}, {top_k=}, backend={self.backend!r})"


pytrees.register(
    Routing,
    (
        "weights",
        "experts",
        "importance",
        "group_loss",
        "load",
        "first_load",
        "logits",
        "noise",
        "bias",
        "mask",
    ),
    ("backend", "score_function", "limited"),
)


def route(
    logits: torch.Tensor,
    top_k: int,
    *,
    map_shape: tuple[int, int] | None = None,
    group_size: int | str | None = "auto",
    sigma: float | torch.Tensor | None = 1.0,
    stride: int = 1,
    border: str = "valid",
    reduction: str = "token_mean",
    unit_energy: bool = False,
    renormalize: bool = True,
    noise: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    score_function: str = "softmax",
    bias: torch.Tensor | None = None,
    num_groups: int = 1,
    top_groups: int = 1,
    scale: float = 1.0,
    index_dtype: torch.dtype = torch.int64,
    nonfinite: str = "error",
    backend: str = "auto",
) -> Routing:
    """Route every token to ``top_k`` experts and measure the topographic group norm of its scores.

    z = f(x); experts = top-k of f(x + noise) + bias; L_group = reduce_{t,p} sqrt(sum_{u,v} G[u,v]
    z[t, i*s+u, j*s+v]^2 + eps), eps = 1e-8 (MoGE, arXiv 2504.09265; docs/method.md "Routing",
    "Wider routing" and "Group-sparse loss"). f is softmax, MoGE's, unless ``score_function`` says
    another.

    Args:
        logits: x, (T, N), float32, float64, bfloat16 or float16, 1 <= N <= 1024, any strides. On
            CUDA float64 only with backend="reference".
        top_k: k, 1 <= k <= N.
        map_shape: (rows, cols) with rows * cols = N; None takes the most nearly square map.
        group_size: h, the side of a group; None computes no group norm (plain MoE routing).
            "auto" takes 3, or the largest below it that fits the map: 2 for N = 8 (2x4), 1 for a
            prime N. h = 1 groups nothing: its loss is constant up to eps, so it is plain MoE.
        sigma: width of the Gaussian in map cells, > 0; None for a box filter. As a tensor, (), it
            can change under torch.compile without compiling again; it is not differentiated. One
            on a GPU is not read, so not checked.
        stride: distance between neighbouring groups in map cells.
        border: "valid" (windows wholly on the map) or "torus" (indices modulo the map).
        reduction: "token_mean", "official_image" or "official_language".
        unit_energy: divide a token's z by its norm over the experts in the loss, so that the loss
            asks for few and neighbouring experts, not for even scores (docs/method.md "A repair:
            unit energy"). A row of zeros stays one and has a gradient of 0.
        renormalize: make the k weights of a token sum to 1; else they are its scores.
        noise: (T, N), added to the logits for selection only; no gradient flows to it.
        mask: (T,) bool, tokens that count (docs/method.md "Wider routing"). The others, padding,
            get weights and experts like any other, and enter neither group_loss (its mean is over
            those that count), importance, load nor first_load; if none counts all are 0. What
            padding holds does no harm: a row that ``nonfinite`` would not let be routed is routed
            as a row of zeros.
        score_function: f: "softmax"; "sigmoid" (DeepSeek-V3, GLM, Kimi); "sqrtsoftplus", the root
            of log(1 + exp x) (TransformerEngine). With the last two, weights are divided by their
            sum + 1e-20, and importance sums z / (sum_e z + 1e-20), as balance losses expect.
        bias: (N,), of the floating dtypes of the logits, added to the scores for selection only; no
            gradient flows to it. Its values are not checked: -inf closes an expert.
        num_groups, top_groups: choose only among experts of the best ``top_groups`` of
            ``num_groups`` equal consecutive ranges; a range ranks by the sum of its top_k /
            top_groups best f(x + noise) + bias. num_groups divides N, top_groups divides top_k. No
            relation to the groups of the map.
        scale: every weight is multiplied by it at last; > 0.
        index_dtype: of ``experts``, torch.int64 or torch.int32.
        nonfinite: "error" refuses NaN and infinite input. "propagate" lets it through: a row with
            NaN or +inf, or with nothing but -inf, gets NaN weights and makes the loss and the
            importance NaN; -inf beside finite logits is a score of exactly 0 (a masked expert).
            With another score_function than softmax a row of nothing but -inf has scores of 0.
            NaN ranks as -inf in the selection. Every row still gets k different experts. On CUDA
            "error" waits for the device and cannot be captured into a graph; "propagate" can.
        backend: "auto", "extension" or "reference".

    Returns:
        Routing with weights (T, k), experts (T, k) in descending order of what was compared,
        importance (N,) = sum_t z, group_loss (), load (N,) int64 = choices per expert, first_load
        (N,) int64 = first choices per expert, scores (T, N), computed on first access, and
        backend, the name of what ran. Floats are float32, or float64
        for float64 logits; sums over tokens are accumulated in float64, in a fixed order: the
        result does not depend on the number of threads.

    Raises:
        TypeError, ValueError: naming the argument, what came and what would work.

    Contracts, the same for reference, extension and compiled: equal selection values go to the
    lower expert index; T = 0 gives empty outputs and a loss of 0; scores that underflow to 0 have
    a gradient of 0, since eps stands under the root; renormalised weights are a softmax of the
    kept logits and never 0/0. The kernels of the CPU take subnormal numbers, in float32 those
    below 1.2e-38, for 0, as equal logits too. Gradients reach the logits through weights,
    importance and group_loss, by .backward() or torch.autograd.grad, under activation checkpointing
    too. Second derivatives, forward-mode derivatives and those of torch.func raise
    NotImplementedError, but for backend="reference", which has them. torch.func.vmap is one call a
    slice.

    Deviation: for softmax without bias and ranges x + noise is compared instead of
    softmax(x + noise). The order is the same, and scores that only round to equal floats make no
    tie.
    """
    validation.check_matrix("logits", logits)
    taps, topo = None, None
    if group_size is not None:
        taps, topo = validation.make_groups(
            logits, map_shape, group_size, sigma, stride, border, reduction, unit_energy
        )
    choice = make_choice(
        int(logits.shape[1]), top_k, renormalize, score_function, num_groups, top_groups, scale
    )
    validation.check_bias(bias, logits)
    routing = route_with_taps(
        logits, taps, topo, choice, noise=noise, nonfinite=nonfinite, backend=backend, bias=bias,
        mask=mask,
    )  # fmt: skip
    if index_dtype is not torch.int64:
        validation.check_index_dtype(index_dtype)
        routing.experts = routing.experts.to(index_dtype)
    return routing


# Between two calls of a router a model runs much else, so the Python of a call starts from cold
# caches: a check that takes 1 us in a loop takes 15 there, and a call 100 us more than its op.
# Checks therefore ask for little, and none is made twice.
def route_with_taps(
    logits: torch.Tensor,
    taps: torch.Tensor | None,
    topo: Topography | None,
    choice: Choice,
    *,
    noise: torch.Tensor | None,
    nonfinite: str,
    backend: str,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> Routing:
    """``route`` with the filter given as a tensor, so that an annealed sigma never recompiles.

    ``logits`` and ``bias`` are not checked: validation.check_matrix does that, before the groups
    are made, and ``choice`` is for their N.
    """
    validation.check_noise(noise, logits)
    validation.check_nonfinite(nonfinite)
    chosen = extension.choose_backend(backend, logits, "route")
    strict = nonfinite == "error"
    validation.check_mask(mask, logits, "logits", 1)
    if chosen == "extension":
        outputs = extension.find_op("route")(
            logits, noise, taps, () if topo is None else topo.as_ints, choice.as_ints, strict,
            bias=bias, mask=mask, scale=choice.scale,
        )  # fmt: skip
        weights, experts, importance, group_loss, load, first_load = outputs[:6]
        return Routing(
            weights, experts, importance, group_loss, load, first_load, logits, noise, chosen,
            bias, mask, None, choice.score_function, choice.limited,
            strict if mask is not None else None,
        )  # fmt: skip
    if mask is not None:
        logits = masking.routable_rows(logits, mask, strict)
        if noise is not None:
            noise = masking.routable_rows(noise, mask)
    if strict:
        validation.check_finite("logits", logits)
        if noise is not None:
            validation.check_finite("noise", noise)
    outputs = reference.route(logits, noise, taps, topo, choice, bias, mask)
    return Routing(
        *outputs, logits, noise, chosen, bias, mask, None, choice.score_function, choice.limited
    )


def _route_fake(
    logits: torch.Tensor,
    noise: Any,
    taps: Any,
    groups: Any,
    choice: Sequence[int],
    *_: Any,
    **__: Any,
) -> tuple[torch.Tensor, ...]:
    (num_tokens, num_experts), top_k = logits.shape, choice[0]
    dtype = reference.accumulation_dtype(logits.dtype)
    return (
        logits.new_empty((num_tokens, top_k), dtype=dtype),
        logits.new_empty((num_tokens, top_k), dtype=torch.int64),
        logits.new_empty((num_experts,), dtype=dtype),
        logits.new_empty((), dtype=dtype),
        logits.new_empty((num_experts,), dtype=torch.int64),
        logits.new_empty((num_experts,), dtype=torch.int64),
        logits.new_empty((num_tokens, 2), dtype=dtype),  # row_stats of csrc/kernels.h
    )


def _route_backward_fake(
    grad_weights: Any,
    grad_importance: Any,
    grad_loss: Any,
    logits: torch.Tensor,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


if extension.load()[0] is not None:
    torch.library.register_fake("moge::route", _route_fake)
    torch.library.register_fake("moge::route_backward", _route_backward_fake)
