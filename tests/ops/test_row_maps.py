"""Maps whose rows are registers have a backward kernel of their own (csrc/cpu/row_backward.h)."""

import pytest
import torch

from moge_bench import route

SIZES = [32, 64, 128]  # maps of 4x8, 8x8 and 8x16
# A token, an odd end of two tokens a register, whole tiles, two chunks.
NUM_TOKENS = [1, 2, 7, 8, 16, 37, 530]
# Relative, and of the largest gradient: the result is rounded once, to the logits' own type.
TOLERANCE = {
    torch.float32: (2e-5, 1e-6), torch.bfloat16: (2.0**-8, 1e-6), torch.float16: (2.0**-10, 1e-6),
}  # fmt: skip


def gradient(logits, parts, backend="extension", **options):
    """Return the gradient of the logits through the named outputs."""
    num_tokens, num_experts = logits.shape
    generator = torch.Generator().manual_seed(3)
    x = logits.detach().clone().requires_grad_()
    r = route(x, **{"top_k": 2, "group_size": 3, **options}, backend=backend)
    loss = torch.zeros((), dtype=r.weights.dtype)
    if "weights" in parts:
        upstream = torch.randn(r.weights.shape, generator=generator, dtype=torch.float64)
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


@pytest.mark.parametrize("dtype", list(TOLERANCE))
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
        rtol, of_largest = TOLERANCE[dtype]
        atol = of_largest * truth.abs().max().item()
        if dtype == torch.float16:
            atol += 2.0**-25  # half its smallest number
        torch.testing.assert_close(ours.double(), truth, rtol=rtol, atol=atol)


@pytest.mark.parametrize("options", [
    {"top_k": 1}, {"top_k": 3}, {"top_k": 8}, {"sigma": 0.05}, {"sigma": 1000.0},
    {"map_shape": (8, 4)}, {"map_shape": (16, 4)}, {"map_shape": (4, 16)}, {"map_shape": (2, 32)},
    {"group_size": 2}, {"group_size": 4}, {"stride": 2},
], ids=str)  # fmt: skip
def test_what_is_beside_the_usual_call(options):
    """Other k, taps of 0 or all equal, and maps and groups that the tiles take."""
    num_experts = 32 if options.get("map_shape") == (8, 4) else 64
    logits = torch.randn(21, num_experts)
    logits[4, ::2] = -float("inf")  # e = 0 there; the row is routed
    parts = ("weights", "importance", "group_loss")
    for border in ("torus", "valid"):
        if options.get("map_shape") == (2, 32) and border == "valid":
            continue
        given = {"border": border, "nonfinite": "propagate", **options}
        ours = gradient(logits, parts, **given)
        truth = gradient(logits.double(), parts, "reference", **given)
        torch.testing.assert_close(ours.double(), truth, rtol=2e-5, atol=1e-6)


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
