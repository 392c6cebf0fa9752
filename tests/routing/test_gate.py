import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from moge_bench import TopographicRouter


def make():
    torch.manual_seed(0)
    return TopographicRouter(8, num_experts=16)


X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


class LowRank(nn.Module):
    """A LoRA wrapper, without in_features or weight of its own."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.full((8, 2), 0.1))
        self.b = nn.Parameter(torch.full((2, 16), 0.1))

    def forward(self, x):
        return self.base(x) + x @ self.a @ self.b


class Int8Linear(nn.Module):
    """Weights as whole numbers of one step."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("scale", weight.abs().max() / 127)
        self.register_buffer("steps", (weight / self.scale).round().to(torch.int8))

    def forward(self, x):
        return F.linear(x, self.scale * self.steps)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_hooks_on_the_gate_fire_and_see_what_it_computed():
    router, seen = make(), []
    router.gate.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(router(X).logits, seen[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrapped_gate_has_its_effect_and_gradient_in_float32(dtype):
    router = make()
    weight = router.gate.weight.detach().to(dtype).float()
    router.gate = LowRank(router.gate)
    router.to(dtype)
    routing = router(X.to(dtype))
    low_rank = router.gate.a.detach().float() @ router.gate.b.detach().float()
    # x (W^T + A B), in float32 also where W, A, B and x are bfloat16.
    expected = X.to(dtype).float() @ (weight.t() + low_rank)
    assert routing.logits.dtype == torch.float32
    torch.testing.assert_close(routing.logits, expected, rtol=1e-5, atol=1e-6)
    routing.weights[:, 0].sum().backward()
    assert router.gate.a.grad.abs().sum() > 0
    assert router.gate.a.grad.dtype == dtype


def test_wrapped_gate_in_bfloat16_compiles_without_a_graph_break():
    router = make()
    router.gate = LowRank(router.gate)
    router.bfloat16()
    compiled = torch.compile(router, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X).logits, router(X).logits)


def test_plain_linear_in_the_gates_place_is_computed_in_float32():
    router = make().bfloat16()
    router.gate = nn.Linear(8, 16, bias=True, dtype=torch.bfloat16)
    expected = F.linear(X, router.gate.weight.float(), router.gate.bias.float())
    assert torch.equal(router(X).logits, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(X).logits, expected)


def test_parametrised_gate():
    router = make()
    expected = 2 * router(X).logits
    parametrize.register_parametrization(router.gate, "weight", Doubled())
    assert torch.equal(router(X).logits, expected)


def test_quantised_gate():
    router = make()
    router.gate = Int8Linear(router.gate.weight.detach())
    router.bfloat16()
    scale = router.gate.scale.float()
    # Rounded to steps of `scale`; whole numbers up to 127 are exact in every dtype.
    expected = F.linear(X, scale * router.gate.steps.float())
    assert torch.equal(router(X).logits, expected)


@pytest.mark.parametrize("group_size", [None, 3])
@pytest.mark.parametrize("width", [12, 17])
def test_a_gate_of_another_width_is_refused(group_size, width):
    router = TopographicRouter(8, num_experts=16, group_size=group_size)
    router.gate = nn.Linear(8, width)
    with pytest.raises(ValueError, match=rf"gate must return .*num_experts=16\), got \(5, {width}"):
        router(X)
