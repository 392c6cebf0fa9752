"""Padding in a batch: the tokens that count get what they would get alone."""

import pytest
import torch

from moge_bench import MoELayer


def make(**settings):
    torch.manual_seed(0)
    return MoELayer(8, 12, **{"num_experts": 4, "top_k": 2, "group_size": 2, **settings})


def padded_batch(pad):
    """Three sequences of 9, 5 and 1 tokens."""
    x = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([[9], [5], [1]])
    x[~mask] = pad
    return x.requires_grad_(), mask


@pytest.mark.parametrize("backend", ["reference", "extension"])
@pytest.mark.parametrize("pad", [0.0, 1e4, torch.nan, torch.inf])
@pytest.mark.parametrize("balance", ["switch", "vmoe"])
@pytest.mark.parametrize("batch_priority", [False, True])
def test_padding_changes_nothing(backend, pad, balance, batch_priority):
    layer = make(
        group_weight=1.0, z_loss_weight=0.5, balance=balance, capacity_factor=0.75,
        batch_priority=batch_priority, backend=backend,
    )  # fmt: skip
    x, mask = padded_batch(pad)
    y, aux = layer(x, mask)
    alone_y, alone = layer(x[mask])
    torch.testing.assert_close(y[mask], alone_y)
    assert torch.count_nonzero(y[~mask]) == 0
    torch.testing.assert_close(aux.losses, alone.losses)
    assert torch.equal(aux.routing.load, alone.routing.load)
    # ceil(15 * 2 * 0.75 / 4) = 6 of 30 choices an expert: at least 30 - 24 are dropped.
    assert int(aux.num_dropped) == int(alone.num_dropped) >= 6
    wanted = [x, *layer.parameters()]
    got = torch.autograd.grad(y.square().sum() + aux.loss, wanted)
    expected = torch.autograd.grad(alone_y.square().sum() + alone.loss, wanted)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_but_padding():
    layer, (x, mask) = make(group_weight=1.0, capacity_factor=1.0), padded_batch(0.0)
    y, aux = layer(x, torch.zeros_like(mask))
    (y.sum() + aux.loss).backward()
    assert float(aux.loss.detach()) == 0.0
    assert torch.count_nonzero(y) == 0
    for parameter in layer.parameters():
        assert torch.count_nonzero(parameter.grad) == 0


def test_mask_of_another_shape():
    x, mask = padded_batch(0.0)
    with pytest.raises(ValueError, match=r"every token of x, shape \(3, 9\).*got \(27,\)"):
        make()(x, mask.reshape(-1))
