"""LLaVA-style: images and text into an MoE language model, its routers with the group loss."""

import pytest
import torch
from integration_samples import llava

from moge_bench import SigmaSchedule
from moge_bench.integrations.transformers import attach_group_sparsity

IMAGE_TOKEN, PATCHES = 3, 4  # an image of 8 x 8 pixels is 2 x 2 patches
STEPS, LAMBDA = 2, 5.0


def batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 13, (2, 10), generator=generator)
    tokens[:, :PATCHES] = IMAGE_TOKEN
    labels = tokens.masked_fill(tokens == IMAGE_TOKEN, -100)
    pixels = torch.randn(2, 3, 8, 8, generator=generator)
    return {"input_ids": tokens, "labels": labels, "pixel_values": pixels}


def train(group_weight):
    """Two steps; return the losses, L_group of the routers at each step, and the gates after."""
    torch.manual_seed(0)
    model = llava().train()
    schedule = SigmaSchedule(10.0, 1.0, 0.2, total_steps=STEPS)
    handle = attach_group_sparsity(
        model, group_weight=group_weight, map_shape=(2, 4), group_size=2, sigma=schedule
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, groups = [], []
    for step in range(STEPS):
        handle.set_step(step)
        loss = model(**batch()).loss
        loss.backward()
        assert model.model.multi_modal_projector.linear_1.weight.grad.norm() > 0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        groups.append(sum(float(value.detach()) for value in handle.losses.values()))
    layers = model.model.language_model.layers
    return losses, groups, [layer.mlp.gate.weight.detach() for layer in layers]


def test_two_steps_with_the_group_loss():
    losses, groups, gates = train(LAMBDA)
    plain, same, others = train(0.0)
    # The model's own loss, and lambda times the sum over its two routers, whatever they route:
    # patches of an image and words.
    assert groups[0] == pytest.approx(same[0], rel=1e-6)
    assert losses[0] == pytest.approx(plain[0] + LAMBDA * groups[0], rel=1e-5)
    assert len(gates) == 2 and all(torch.isfinite(gate).all() for gate in gates)
    # It trains every gate, and towards less of it than the task alone does.
    assert not any(map(torch.equal, gates, others))
    assert groups[1] < same[1]
