"""Inputs of expert_ffn, for its tests."""

import torch


def make_inputs(
    num_tokens=13, hidden=6, ffn=5, num_experts=4, top_k=2, *, bias=True, dropped=0.2,
    dtype=torch.float32, seed=0,
):  # fmt: skip
    """Return the seven tensors of expert_ffn, with gradients, some choices dropped."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    x, weights = draw(num_tokens, hidden), draw(num_tokens, top_k)
    experts = torch.randint(0, num_experts, (num_tokens, top_k), generator=generator)
    experts[torch.rand(experts.shape, generator=generator) < dropped] = -1
    w_in, w_out = draw(num_experts, ffn, hidden), draw(num_experts, hidden, ffn)
    b_in = draw(num_experts, ffn) if bias else None
    b_out = draw(num_experts, hidden) if bias else None
    return [x, weights, experts, w_in, b_in, w_out, b_out]
