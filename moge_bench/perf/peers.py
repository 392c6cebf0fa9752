"""Routers and experts of other libraries, called as those libraries call them.

Installed by the extra ``peers``; imported only when they are timed. A library that is missing
raises ImportError, and its row says so. tutel is not on PyPI: it is built from its repository
(github.com/microsoft/tutel).

Legend: T tokens, N experts, k chosen, d hidden size, f hidden size of an expert.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from moge_bench.perf.registry import DTYPES, Case

PEER_PACKAGES = {
    "transformers_mixtral": "transformers",
    "transformers_olmoe": "transformers",
    "transformers_eager": "transformers",
    "transformers_grouped_mm": "transformers",
    "megatron_core": "megatron-core",
    "tutel": "tutel",
}
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
Forward = Callable[[torch.Tensor], Outputs]


def version(candidate: str) -> str:
    """Return "package version" of a peer, "package" alone where no metadata is installed."""
    package = PEER_PACKAGES[candidate]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _identity_gate(router: torch.nn.Module, case: Case, device: str) -> torch.nn.Module:
    """Give a router with a built-in linear gate the N x N identity, so its logits are the input."""
    router.to(device=device, dtype=DTYPES[case.dtype])
    weight = router.weight
    assert isinstance(weight, torch.nn.Parameter)
    with torch.no_grad():
        weight.copy_(torch.eye(case.num_experts))
    return router.requires_grad_(False)


def mixtral(case: Case, device: str) -> Forward:
    """transformers' Mixtral router: its linear gate is part of it."""
    if not case.renormalize:
        raise NotImplementedError("Mixtral always renormalises, this case (k = 1) does not")
    module = importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    config = SimpleNamespace(
        num_experts_per_tok=case.top_k,
        num_local_experts=case.num_experts,
        hidden_size=case.num_experts,
    )
    router = _identity_gate(module.MixtralTopKRouter(config), case, device)

    def forward(logits_TN: torch.Tensor) -> Outputs:
        _, weights, experts = router(logits_TN)
        return weights, experts, None

    return forward


def olmoe(case: Case, device: str) -> Forward:
    """transformers' OLMoE router: its linear gate is part of it."""
    module = importlib.import_module("transformers.models.olmoe.modeling_olmoe")
    config = SimpleNamespace(
        num_experts_per_tok=case.top_k,
        num_experts=case.num_experts,
        hidden_size=case.num_experts,
        norm_topk_prob=case.renormalize,
    )
    router = _identity_gate(module.OlmoeTopKRouter(config), case, device)

    def forward(logits_TN: torch.Tensor) -> Outputs:
        _, weights, experts = router(logits_TN)
        return weights, experts, None

    return forward


def megatron(case: Case, device: str) -> Forward:
    """megatron-core's softmax top-k; it returns dense probabilities and a boolean map."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that Apex and Transformer Engine are absent
        module = importlib.import_module("megatron.core.transformer.moe.moe_utils")
    pre_softmax = not case.renormalize

    def forward(logits_TN: torch.Tensor) -> Outputs:
        weights_TN, chosen_TN = module.topk_routing_with_score_function(
            logits_TN, case.top_k, use_pre_softmax=pre_softmax
        )
        return weights_TN, chosen_TN, None

    return forward


def tutel(case: Case, device: str) -> Forward:
    """tutel's gate: softmax, then ``extract_critical``, which also locates every token."""
    module = importlib.import_module("tutel.impls.fast_dispatch")

    def forward(logits_TN: torch.Tensor) -> Outputs:
        scores_TN = F.softmax(logits_TN, dim=-1, dtype=torch.float32)
        (_, experts, _, weights, *_), _ = module.extract_critical(
            scores_TN, case.top_k, loss_fn=None, capacity_factor=0, normalize_gate=case.renormalize
        )
        return torch.stack(weights, dim=1), torch.stack(experts, dim=1).long(), None

    return forward


def transformers_experts(
    case: Case, implementation: str, w_in: torch.Tensor, w_out: torch.Tensor
) -> tuple[
    Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], list[torch.nn.Parameter]
]:
    """transformers' ungated experts (NemotronH's) on the given weights; x, weights, experts -> y,
    and its two parameters.

    ``implementation`` is transformers' own name: "eager" (a loop over the experts that were hit)
    or "grouped_mm". Mixtral's experts have a third matrix and would not be the same function.
    """
    module = importlib.import_module("transformers.models.nemotron_h.modeling_nemotron_h")
    config: Any = SimpleNamespace(
        n_routed_experts=case.num_experts,
        hidden_size=case.hidden_size,
        moe_intermediate_size=case.ffn_size,
        moe_latent_size=None,
        mlp_hidden_act="gelu",
        _experts_implementation=implementation,
    )
    experts = module.NemotronHExperts(config)
    experts.up_proj = torch.nn.Parameter(w_in)
    experts.down_proj = torch.nn.Parameter(w_out)

    def forward(x: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = experts(x, indices, weights)
        return y

    return forward, [experts.up_proj, experts.down_proj]
