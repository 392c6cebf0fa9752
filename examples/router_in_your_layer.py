"""``TopographicRouter`` inside a layer of one's own, with experts of one's own: python FILE."""

import torch
from torch import nn

from moge_bench import SigmaSchedule, TopographicRouter


class GatedExperts(nn.Module):
    """N gated FFNs, y = (silu(x A) * x B) C, whose weights lie in one tensor each."""

    def __init__(self, num_experts: int, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.up = nn.Parameter(
            torch.randn(num_experts, hidden_size, 2 * ffn_size) / hidden_size**0.5
        )
        self.down = nn.Parameter(torch.randn(num_experts, ffn_size, hidden_size) / ffn_size**0.5)

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """Return what ``expert`` makes of ``x``, (tokens, hidden_size)."""
        gate, value = (x @ self.up[expert]).chunk(2, dim=-1)
        return (nn.functional.silu(gate) * value) @ self.down[expert]


class YourMoE(nn.Module):
    """The router decides and measures; everything else of the layer is yours."""

    def __init__(self, hidden_size: int = 32, num_experts: int = 16, top_k: int = 2) -> None:
        super().__init__()
        self.router = TopographicRouter(hidden_size, num_experts, top_k, group_size=3, sigma=10.0)
        self.experts = GatedExperts(num_experts, hidden_size, ffn_size=16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (y, L_group) of ``x``, (T, hidden_size)."""
        routing = self.router(x)
        y = torch.zeros_like(x)
        for expert in range(self.router.num_experts):
            token, choice = torch.where(routing.experts == expert)
            weighted = routing.weights[token, choice, None] * self.experts(x[token], expert)
            y = y.index_add(0, token, weighted.to(y.dtype))
        return y, routing.group_loss


def main(steps: int = 50) -> list[float]:
    """Train the layer to turn its input around; return the L_group of every step."""
    torch.manual_seed(0)
    layer, schedule = YourMoE(), SigmaSchedule(10.0, 1.0, 0.2, total_steps=steps)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    group_losses = []
    for step in range(steps):
        schedule.apply(layer, step)  # sigma of every router inside
        x = torch.randn(64, 32)
        y, group_loss = layer(x)
        task_loss = (y - x.flip(-1)).square().mean()
        (task_loss + 0.1 * group_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        group_losses.append(float(group_loss.detach()))
    print(f"task loss {task_loss:.3f}, L_group {group_losses[0]:.4f} -> {group_losses[-1]:.4f}")
    return group_losses


if __name__ == "__main__":
    main()
