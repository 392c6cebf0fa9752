"""The group-sparse loss on the scores of any router, in three lines each: python FILE.

Legend: T tokens, N experts. Nothing but torch and moge_bench is needed.
"""

import torch
from torch import nn

from moge_bench import group_norm


class PlainMoE(nn.Module):
    """An MoE layer as people write it by hand: a linear gate, top-k of the softmax, N experts."""

    def __init__(self, hidden_size: int = 16, num_experts: int = 16, top_k: int = 2) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Linear(hidden_size, hidden_size) for _ in range(num_experts)
        )
        self.top_k = top_k

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (y, scores) of ``x`` (T, hidden_size)."""
        scores = self.gate(x).softmax(-1)
        weights, experts = scores.topk(self.top_k)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, choice = torch.where(experts == number)
            y = y.index_add(0, token, weights[token, choice, None] * expert(x[token]))
        return y, scores


def plain_pytorch(layer: PlainMoE, x: torch.Tensor, group_weight: float) -> torch.Tensor:
    """Return a loss: let the layer return its scores, and add their group norm."""
    y, scores = layer(x)
    task_loss = (y - x).square().mean()
    return task_loss + group_weight * group_norm(scores, sigma=1.0)


def megatron_style(
    logits: torch.Tensor, padding_mask: torch.Tensor, group_weight: float
) -> torch.Tensor:
    """Return the term of Megatron's router logits, (S, B, N), sequence first.

    For TopKRouter.routing: there MoEAuxLossAutoScaler.apply(probs, term) gives the term its
    gradient, as it does for Megatron's own auxiliary losses. ``padding_mask`` (S, B): True is
    padding. For moe_router_score_function="sigmoid" take the sigmoid.
    """
    scores = logits.float().softmax(-1).flatten(0, 1)
    counted = ~padding_mask.flatten()
    return group_weight * group_norm(scores, sigma=1.0, mask=counted)


def tutel_style(logits: torch.Tensor, l_aux: torch.Tensor, group_weight: float) -> torch.Tensor:
    """Return what to add to the task loss beside a Tutel layer, with Tutel's own ``l_aux``.

    ``logits`` (T, N): what the layer's gate returns. A forward hook sees them:
    ``layer.gates[0].register_forward_hook(lambda gate, x, logits: ...)``.
    """
    scores = logits.float().softmax(-1)
    term = group_weight * group_norm(scores, sigma=1.0)
    return l_aux + term


def main() -> None:
    """Print the three losses."""
    torch.manual_seed(0)
    layer, x = PlainMoE(), torch.randn(32, 16)
    logits = layer.gate(x)
    loss = plain_pytorch(layer, x, group_weight=0.04)
    loss.backward()
    print(
        f"plain PyTorch: loss {loss:.4f}, gradient at the gate {layer.gate.weight.grad.norm():.4f}"
    )
    padding = torch.zeros(8, 4, dtype=torch.bool)
    print(f"Megatron: term {megatron_style(logits.view(8, 4, 16), padding, 0.04):.5f}")
    print(f"Tutel: l_aux and term {tutel_style(logits, torch.tensor(1.0), 0.04):.5f}")


if __name__ == "__main__":
    main()
