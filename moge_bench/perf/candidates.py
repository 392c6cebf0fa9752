"""Every way to route that the benchmark times, each behind one signature.

A candidate's ``build(case, options)`` returns its forward: logits (T, N) -> (weights, experts,
loss). weights and experts are (T, k), or dense (T, N) with a boolean map for libraries that
return those; loss is None where the candidate computes no group norm.

Legend: T tokens, N experts, k chosen, (r, c) map, h group side, P groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moge_bench.ops.route import route
from moge_bench.ops.topography import EPS, Topography, gaussian_taps
from moge_bench.perf import peers
from moge_bench.perf.registry import Case

SIGMA = 1.0
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
Forward = Callable[[torch.Tensor], Outputs]


@dataclass(frozen=True)
class Options:
    """What a run may choose: the backend of ours, and the device."""

    backend: str = "extension"
    device: str = "cpu"


@dataclass(frozen=True)
class Candidate:
    """One way to do (part of) the router's job.

    ``job`` says how much of it: "moge" is softmax, top-k and group norm; "topk" lacks the group
    norm; "softmax" and "copy" are limits, not routers. ``reference_candidate`` is the candidate
    that a ratio is taken against: ours, or ours behind the same linear gate.
    """

    name: str
    job: str
    build: Callable[[Case, Options], Forward]
    compiled: bool = False
    peer: bool = False
    reference_candidate: str = "ours"


def _ours(case: Case, options: Options) -> Forward:
    # On a GPU the check for NaN waits for the device, which no other candidate does.
    nonfinite = "error" if torch.device(options.device).type == "cpu" else "propagate"

    def forward(logits_TN: torch.Tensor) -> Outputs:
        routing = route(
            logits_TN, case.top_k, group_size=case.group_size, sigma=SIGMA, border=case.border,
            renormalize=case.renormalize, nonfinite=nonfinite, backend=options.backend,
        )  # fmt: skip
        if routing.backend != options.backend:
            raise RuntimeError(f"fallback: asked for {options.backend!r}, {routing.backend!r} ran")
        return routing.weights, routing.experts, routing.group_loss

    return forward


def _ours_gated(case: Case, options: Options) -> Forward:
    """Ours behind the N x N identity gate that the gated peers multiply by as well."""
    forward, gate_NN = _ours(case, options), torch.eye(case.num_experts, device=options.device)
    return lambda logits_TN: forward(F.linear(logits_TN, gate_NN.to(logits_TN.dtype)))


def softmax_topk(logits_TN: torch.Tensor, case: Case) -> tuple[torch.Tensor, Outputs]:
    """Return (scores, (weights, experts, None)) in plain PyTorch, as model code writes it."""
    scores_TN = F.softmax(logits_TN, dim=-1, dtype=torch.float32)
    weights_TK, experts_TK = torch.topk(scores_TN, case.top_k, dim=-1)
    if case.renormalize:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return scores_TN, (weights_TK, experts_TK, None)


def _softmax_topk(case: Case, options: Options) -> Forward:
    return lambda logits_TN: softmax_topk(logits_TN, case)[1]


def _authors(case: Case, options: Options) -> Forward:
    """Squared scores under one 2-D convolution, as the paper's released code computes them."""
    topo = case.topography
    taps = gaussian_taps(case.group_size, SIGMA).float().to(options.device)
    filter_11HH = torch.outer(taps, taps)[None, None]
    pad = case.group_size - 1
    rows = torch.arange(topo.rows + pad, device=options.device) % topo.rows
    cols = torch.arange(topo.cols + pad, device=options.device) % topo.cols

    def forward(logits_TN: torch.Tensor) -> Outputs:
        scores_TN, (weights, experts, _) = softmax_topk(logits_TN, case)
        squared_T1RC = (scores_TN**2).view(-1, 1, topo.rows, topo.cols)
        if topo.border == "torus":
            if pad <= min(topo.rows, topo.cols):
                squared_T1RC = F.pad(squared_T1RC, (0, pad, 0, pad), mode="circular")
            else:  # circular padding wraps once at most
                squared_T1RC = squared_T1RC[:, :, rows][:, :, :, cols]
        norms = torch.sqrt(F.conv2d(squared_T1RC, filter_11HH) + EPS)
        return weights, experts, norms.mean()

    return forward


def group_matrix(topo: Topography) -> torch.Tensor:
    """Return A, (N, P) float32: group energies of z are z^2 @ A."""
    taps = gaussian_taps(topo.group_size, SIGMA)
    matrix_NP = torch.zeros(topo.rows * topo.cols, topo.num_groups, dtype=torch.float64)
    for p in range(topo.num_groups):
        i, j = divmod(p, topo.group_cols)
        for u in range(topo.group_size):
            for v in range(topo.group_size):
                row, col = (i * topo.stride + u) % topo.rows, (j * topo.stride + v) % topo.cols
                matrix_NP[row * topo.cols + col, p] += taps[u] * taps[v]
    return matrix_NP.float()


def _matrix_product(case: Case, options: Options) -> Forward:
    matrix_NP = group_matrix(case.topography).to(options.device)

    def forward(logits_TN: torch.Tensor) -> Outputs:
        scores_TN, (weights, experts, _) = softmax_topk(logits_TN, case)
        return weights, experts, torch.sqrt(scores_TN**2 @ matrix_NP + EPS).mean()

    return forward


def _compiled(build: Callable[[Case, Options], Forward]) -> Callable[[Case, Options], Forward]:
    # fullgraph: a graph break or an exceeded recompile limit raises instead of running eagerly.
    def compiled(case: Case, options: Options) -> Forward:
        torch._dynamo.reset()
        return torch.compile(build(case, options), fullgraph=True, dynamic=False)

    return compiled


def _not_a_router(case: Case, options: Options) -> Forward:
    raise AssertionError("the limits have no routing forward; bench.py times them itself")


def _peer(build: Callable[[Case, str], Forward]) -> Callable[[Case, Options], Forward]:
    return lambda case, options: build(case, options.device)


ROUTERS = (
    Candidate("ours", "moge", _ours),
    Candidate("authors_conv2d", "moge", _authors),
    Candidate("matrix_product", "moge", _matrix_product),
    Candidate("authors_conv2d_compiled", "moge", _compiled(_authors), compiled=True),
    Candidate("matrix_product_compiled", "moge", _compiled(_matrix_product), compiled=True),
    Candidate("softmax_topk", "topk", _softmax_topk),
    Candidate("torch_softmax", "softmax", _not_a_router),
    Candidate("copy", "copy", _not_a_router),
    Candidate("ours_gated", "moge", _ours_gated, peer=True),
    *(
        Candidate(name, "topk", _peer(build), peer=True,
                  reference_candidate="ours_gated" if gated else "ours")
        for name, build, gated in (
            ("transformers_mixtral", peers.mixtral, True),
            ("transformers_olmoe", peers.olmoe, True),
            ("megatron_core", peers.megatron, False),
            ("tutel", peers.tutel, False),
        )
    ),
)  # fmt: skip


def traffic_bytes(job: str, case: Case) -> int:
    """Return the least bytes that forward and backward of ``job`` must move through memory.

    Router ("moge", "topk"): read the logits twice, write the gradient once, and per choice write
    weight and expert, read both back and read the weight's gradient. softmax: read x; write z;
    read z and its gradient; write the gradient. copy: read and write. Caches are not modelled, so
    a small case can exceed the copy's rate.
    """
    item = 2 if case.dtype == "bf16" else 4
    matrix, choices = case.num_tokens * case.num_experts, case.num_tokens * case.top_k
    if job == "copy":
        return 2 * matrix * item
    if job == "softmax":
        return 5 * matrix * item
    return 3 * matrix * item + choices * (2 * (4 + 8) + 4)
