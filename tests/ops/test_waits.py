"""A training step of an MoE layer on a GPU never waits for it: shown without one.

The layer runs on the CPU by the ops of a GPU, whose kernels are plain torch here, under a mode that
refuses every op which would read a value back.
"""

import itertools

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transform_cases import cpu_kernels

from moge_bench import MoELayer
from moge_bench.ops import expert_ffn, grouped_ffn
from moge_bench.routing.balance import BALANCE_LOSSES
from moge_bench.routing.selection_bias import update_selection_bias

# A result whose value Python reads, or whose size depends on values.
WAITS = {
    "_assert_async", "_local_scalar_dense", "_unique", "_unique2", "allclose", "bincount", "equal",
    "is_nonzero", "item", "masked_select", "nonzero", "nonzero_numpy", "repeat_interleave",
    "unique_consecutive", "unique_dim",
}  # fmt: skip


# Methods that go past the dispatcher where a tensor is on the CPU.
READS = {"__array__", "__bool__", "__float__", "__index__", "__int__", "cpu", "numpy", "tolist"}


class NoReads(TorchFunctionMode):
    """Refuses what reads a tensor's values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        moved = name == "to" and "cpu" in [a for a in args if isinstance(a, str)]
        assert name not in READS and not moved, f"{name} waits for the GPU"
        return func(*args, **(kwargs or {}))


class NoWaits(TorchDispatchMode):
    """Refuses ops that wait for a GPU, and ``NoReads``; notes the others."""

    def __init__(self):
        super().__init__()
        self.seen, self.reads = [], NoReads()

    def __enter__(self):
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.reads.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        self.seen.append(name)
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        by_mask = "index" in name and any(t.dtype == torch.bool for t in tensors[1:])
        # torch has a kernel without waits for bfloat16 alone.
        grouped = name == "_grouped_mm" and tensors[0].dtype != torch.bfloat16
        strict = name in ("route", "group_norm") and args[-1] is True
        assert not (name in WAITS or by_mask or grouped or strict), f"{name} waits for the GPU"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(expert_ffn, "_on_gpu", lambda x: True)
    with cpu_kernels():
        yield


def step(layer, x, mask=None):
    y, aux = layer(x, mask)
    (y.float().square().mean() + aux.loss).backward()


def make_layer(**settings):
    return MoELayer(16, 24, num_experts=8, top_k=2, nonfinite="propagate", **settings)


def products(seen):
    return [name for name in seen if name in ("_grouped_mm", "grouped_product", "grouped_outer")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("balance", "capacity", "bias"),
    itertools.product(BALANCE_LOSSES, [None, 1.0], [False, True]),
)
def test_a_step_of_the_layer(balance, capacity, bias, masked, dtype):
    layer = make_layer(
        balance=balance, capacity_factor=capacity, batch_priority=capacity is not None, bias=bias,
        group_weight=1.0, z_loss_weight=0.1, bias_update_rate=0.01 if balance == "none" else 0.0,
    ).to(dtype)  # fmt: skip
    x = torch.randn(40, 16, dtype=dtype).requires_grad_()
    mask = torch.arange(40) % 3 > 0 if masked else None
    with NoWaits() as mode:
        step(layer, x, mask)
        if balance == "none":
            update_selection_bias(layer)
    assert {"route", "dispatch", "combine", "combine_backward"} <= {*mode.seen}
    # Two products, and each one's two gradients.
    of_each = ["grouped_outer"] * 2 + ["grouped_product"] * 4
    expected = ["_grouped_mm"] * 6 if dtype == torch.bfloat16 else of_each
    assert sorted(products(mode.seen)) == expected
    assert mode.seen.count("bias_activation_backward") == (2 if bias else 0)


def feed(dtype, hidden):
    """Forward and backward of experts alone; what a router makes of float16 is a GPU's."""
    shapes = (40, hidden), (8, 24, hidden), (8, hidden, 24)
    x, w_in, w_out = (torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes)
    weights, experts = torch.rand(40, 2), torch.arange(80).reshape(40, 2) % 5
    grouped_ffn.expert_ffn(
        x, weights, experts, w_in, None, w_out, None, "gelu", check_experts=False
    ).sum().backward()  # fmt: skip
    return w_in.grad


UNLIKE_GROUPED_MM = [(torch.float32, 16), (torch.float16, 16), (torch.bfloat16, 15)]


@pytest.mark.parametrize(("dtype", "hidden"), UNLIKE_GROUPED_MM)
def test_experts_that_grouped_mm_has_no_kernel_for(dtype, hidden):
    with NoWaits() as mode:
        feed(dtype, hidden)
    assert sorted(products(mode.seen)) == ["grouped_outer"] * 2 + ["grouped_product"] * 4


@pytest.mark.parametrize(("dtype", "hidden"), UNLIKE_GROUPED_MM)
def test_without_triton_they_wait_once(dtype, hidden, monkeypatch):
    reads = []
    read = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append(1) or read(t))
    monkeypatch.setattr(grouped_ffn.grouped_product, "why_not", lambda device: "no Triton")
    feed(dtype, hidden)
    assert len(reads) == 1


def test_without_triton_a_capture_says_what_to_do(monkeypatch):
    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(grouped_ffn, "is_capturing", lambda: True)
    with pytest.raises(ValueError, match=r"rows back, .* captured .* pip install triton"):
        grouped_ffn._ProductPerExpert(torch.zeros(3).long().as_subclass(OnGpu))


def test_a_layer_with_checks_waits():
    x = torch.randn(40, 16, dtype=torch.bfloat16)
    layer = make_layer().to(torch.bfloat16)
    layer.router.nonfinite = "error"
    with pytest.raises(AssertionError, match="route waits"), NoWaits():
        layer(x)
    layer.router.nonfinite, layer.experts.check_experts = "propagate", True
    with pytest.raises(AssertionError, match="__int__ waits"), NoWaits():
        layer(x)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: int(x.sum()),
        lambda x: x.tolist(),
        lambda x: x.to("cpu"),
        lambda x: x[x > 0],
        lambda x: torch.bincount(x.long().abs()),
        lambda x: bool((x > 0).all()),
        lambda x: torch.functional.F.grouped_mm(x, x.T[None], offs=torch.tensor([4]).int()),
    ],
)
def test_what_the_mode_refuses(wait):
    with pytest.raises(AssertionError, match="waits for the GPU"), NoWaits():
        wait(torch.randn(4, 4))


class TestExpertsOutOfRange:
    x = torch.randn(5, 16)
    experts = torch.tensor([[0, 1], [2, -1], [1, 3], [-2, 0], [1, 2]])
    weights = torch.full((5, 2), 0.5)

    def run(self, experts, **options):
        w_in, w_out = torch.ones(3, 8, 16), torch.ones(3, 16, 8)
        return expert_ffn.expert_ffn(
            self.x, self.weights, experts, w_in, None, w_out, None, **options
        )

    def test_the_first_row_is_named(self):
        wanted = r"experts must hold -1 .* 0 to 2, got \[1, 3\] in row 2"
        with pytest.raises(ValueError, match=wanted):
            self.run(self.experts)

    def test_unchecked_they_are_dropped(self):
        dropped = self.experts.masked_fill((self.experts < 0) | (self.experts > 2), -1)
        assert torch.equal(self.run(self.experts, check_experts=False), self.run(dropped))


def test_idle_experts_have_a_gradient_of_zero(monkeypatch):
    """Whatever grouped_mm leaves there: NaN in its place is not passed on."""
    true = grouped_ffn.functional.grouped_mm

    class Garbage(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return weight.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.where((grad == 0).all((1, 2), keepdim=True), torch.nan, grad)

    monkeypatch.setattr(
        grouped_ffn.functional,
        "grouped_mm",
        lambda a, b, offs: true(a, Garbage.apply(b), offs=offs),
    )
    w_in = torch.randn(4, 8, 16, dtype=torch.bfloat16).requires_grad_()
    w_out = torch.randn(4, 16, 8, dtype=torch.bfloat16).requires_grad_()
    x, experts = torch.randn(6, 16, dtype=torch.bfloat16), torch.tensor([[0, 3]]).expand(6, 2)
    grouped_ffn.expert_ffn(x, torch.ones(6, 2), experts, w_in, None, w_out, None, "gelu").sum(
    ).backward()  # fmt: skip
    for grad in (w_in.grad, w_out.grad):
        assert grad.isfinite().all() and (grad[[1, 2]] == 0).all() and (grad[[0, 3]] != 0).any()
