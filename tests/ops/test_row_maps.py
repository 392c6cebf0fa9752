"""Maps whose rows are registers have a backward kernel of their own (csrc/cpu/row_backward.h)."""

import pytest
import torch

from moge_bench import route

SIZES = [32, 64, 128]  # maps of 4x8, 8x8 and 8x16
# A token, an odd end of two tokens a register, whole tiles, several flushes of a chunk.
NUM_TOKENS = [1, 2, 7, 8, 16, 37, 530]
OF_FLOAT = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def gradient(logits, parts, backend="extension", **options):
    """Return the gradient of the logits through the named outputs."""
    num_tokens, num_experts = logits.shape
    generator = torch.Generator().manual_seed(3)
    x = logits.detach().clone().requires_grad_()
    r = route(x, 2, group_size=3, backend=backend, **options)
    loss = torch.zeros((), dtype=r.weights.dtype)
    if "weights" in parts:
        upstream = torch.randn(num_tokens, 2, generator=generator, dtype=torch.float64)
        loss = loss + (r.weights * upstream.to(r.weights.dtype)).sum()
    if "importance" in parts:
        upstream = torch.randn(num_experts, generator=generator, dtype=torch.float64)
        loss = loss + (r.importance * upstream.to(r.weights.dtype)).sum()
    if "group_loss" in parts:
        loss = loss + r.group_loss * num_tokens
    loss.backward()
    return x.grad


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("border", ["torus", "valid"])
@pytest.mark.parametrize("num_experts", SIZES)
def test_every_end_of_a_tile(num_experts, border, num_tokens):
    logits = torch.randn(num_tokens, num_experts)
    parts = ("weights", "importance", "group_loss")
    ours = gradient(logits, parts, border=border)
    truth = gradient(logits.double(), parts, "reference", border=border)
    torch.testing.assert_close(ours.double(), truth, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", list(OF_FLOAT))
@pytest.mark.parametrize("parts", [("group_loss",), ("group_loss", "weights"), (
    "group_loss", "importance"), ("group_loss", "importance", "weights")])  # fmt: skip
@pytest.mark.parametrize("options", [
    {}, {"unit_energy": True}, {"renormalize": False}, {"mask": True},
    {"mask": True, "unit_energy": True, "renormalize": False, "scale": 2.5},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("num_experts", SIZES)
def test_every_way_it_is_called(num_experts, options, parts, dtype):
    num_tokens = 41
    logits = (2 * torch.randn(num_tokens, num_experts)).to(dtype)
    if options.get("mask"):
        options = {**options, "mask": torch.arange(num_tokens) % 3 > 0}
    for border in ("torus", "valid"):
        ours = gradient(logits, parts, border=border, **options)
        truth = gradient(logits.double(), parts, "reference", border=border, **options)
        assert ours.dtype == dtype
        size = truth.abs().max().item()
        torch.testing.assert_close(
            ours.double(), truth, rtol=OF_FLOAT[dtype] * 20, atol=OF_FLOAT[dtype] * size
        )


@pytest.mark.parametrize("border", ["torus", "valid"])
@pytest.mark.parametrize("num_experts", SIZES)
def test_the_gradient_of_a_token_is_its_own(num_experts, border):
    """Bit for bit, wherever it stands in a tile; a token without scores spoils no neighbour."""
    logits = torch.randn(35, num_experts)
    alone = [gradient(row[None], ("group_loss",), border=border) for row in logits]
    together = gradient(logits, ("group_loss",), border=border)
    for i, row in enumerate(alone):
        # one token's loss is a mean over one, so the upstream gradients agree
        assert torch.equal(together[i], row[0]), i
    for bad in (0, 6, 17, 34):
        spoilt = logits.clone()
        spoilt[bad, num_experts // 2] = float("nan")
        grad = gradient(spoilt, ("group_loss",), border=border, nonfinite="propagate")
        assert grad[bad].isnan().all()
        others = torch.arange(35) != bad
        assert torch.equal(grad[others], together[others]), bad


def test_masked_tokens_that_are_not_finite_have_no_gradient():
    logits = torch.randn(20, 64)
    mask = torch.ones(20, dtype=torch.bool)
    mask[[3, 9, 19]] = False
    clean = gradient(logits, ("group_loss", "importance"), border="torus", mask=mask)
    logits[3] = float("nan")
    logits[9] = float("-inf")
    logits[19, 5] = float("inf")
    grad = gradient(logits, ("group_loss", "importance"), border="torus", mask=mask)
    assert torch.equal(grad[mask], clean[mask])
    assert (grad[~mask] == 0).all()
