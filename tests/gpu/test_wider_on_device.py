"""The wider routing of the CPU's tests on the device, in float32 against the float64 reference."""

import pytest
import torch
from wider_cases import OPTIONS, objective

from moge_bench import group_norm, route


def on_device(options, device):
    return {
        name: value.to(device, torch.float32 if value.is_floating_point() else value.dtype)
        if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_routing(device, options, dtype):
    options = on_device(options, device)
    options.setdefault("top_k", 2)
    values = torch.randn(40, 16).to(dtype)
    noise = torch.randn(40, 16) / 4
    results = []
    for kind, backend in ((dtype, "extension"), (torch.float64, "reference")):
        logits = values.to(kind).requires_grad_()
        routing = route(logits, noise=noise, backend=backend, **options)
        results.append((routing, torch.autograd.grad(objective(routing), logits)[0]))
    (ours, grad), (truth, wanted) = results
    for name in ("experts", "load", "first_load"):
        assert torch.equal(getattr(ours, name), getattr(truth, name)), name
    for name in ("weights", "importance", "group_loss"):
        torch.testing.assert_close(
            getattr(ours, name).double(), getattr(truth, name), rtol=2e-5, atol=1e-6
        )
    rtol = 1e-4 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(grad.double(), wanted, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("num_experts", [24, 48, 100, 256, 300, 1024])
def test_every_size_class(num_experts, dtype):
    """From one slot a lane to 32: two functions, bias, ranges, scale, mask, unit energy."""
    values = (torch.randn(33, num_experts) * 2).to(dtype)
    bias, mask = torch.randn(num_experts) / 8, torch.arange(33) % 4 > 0
    for function, energy in (("sigmoid", True), ("softmax", False)):
        options = {"bias": bias, "mask": mask, "scale": 2.5, "score_function": function,
                   "num_groups": 4, "top_groups": 2, "unit_energy": energy}  # fmt: skip
        truth = route(values.double(), 4, backend="reference",
                      **(options | {"bias": bias.double()}))  # fmt: skip
        ours = route(values, 4, **options)
        assert torch.equal(ours.experts, truth.experts)
        assert torch.equal(ours.load, truth.load)
        for name in ("weights", "importance", "group_loss"):
            torch.testing.assert_close(
                getattr(ours, name).double(), getattr(truth, name), rtol=2e-5, atol=1e-6
            )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("unit_energy", [False, True])
@pytest.mark.parametrize("reduction", ["token_mean", "official_image"])
def test_group_norm(device, masked, unit_energy, reduction):
    mask = torch.arange(30) % 3 > 0 if masked else None
    values = torch.rand(30, 16)
    if masked:
        values[0] = torch.nan
    results = []
    for dtype, backend in ((torch.float32, "extension"), (torch.float64, "reference")):
        scores = values.to(dtype).requires_grad_()
        loss = group_norm(
            scores, unit_energy=unit_energy, mask=mask, reduction=reduction, backend=backend
        )
        results += [loss.double(), torch.autograd.grad(loss, scores)[0].double()]
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1], results[3], rtol=1e-4, atol=1e-6)


def test_padding_waits_for_nothing_and_enters_nothing(device):
    logits, mask = torch.randn(40, 16), torch.zeros(40, dtype=torch.bool)
    logits[1] = torch.nan
    logits.requires_grad_()
    routing = route(logits, 2, mask=mask, nonfinite="propagate")
    assert float(routing.group_loss) == 0.0
    assert torch.count_nonzero(routing.load) == torch.count_nonzero(routing.importance) == 0
    (gradient,) = torch.autograd.grad(routing.group_loss, logits)
    assert torch.count_nonzero(gradient) == 0
