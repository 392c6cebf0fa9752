"""Every fused op as a function of one tensor, for the tests of derivatives, tracing and modes.

The ops of a GPU (dispatch, bias_activation, combine, the grouped products) get kernels on the CPU
in plain torch while a test runs: what is tested of them is their autograd and their shapes.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from moge_bench import group_norm, route
from moge_bench.ops import grouped_ffn
from moge_bench.ops.choice import Choice
from moge_bench.ops.expert_ffn import expert_ffn
from moge_bench.ops.topography import Topography, gaussian_taps


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


LOGITS = draw(5, 16)
SCORES = torch.softmax(LOGITS, -1)
X, WEIGHTS = draw(5, 3), draw(5, 2)
EXPERTS = torch.tensor([[0, 2], [1, -1], [2, 0], [-1, -1], [3, 1]])
PARAMETERS = {
    "w_in": draw(4, 6, 3),
    "b_in": draw(4, 6),
    "w_out": draw(4, 3, 6),
    "b_out": draw(4, 3),
}


@dataclass(frozen=True)
class Case:
    """``function(tensor, backend)`` is differentiable; ``point`` is where it is tried."""

    name: str
    point: torch.Tensor
    function: Callable[[torch.Tensor, str], torch.Tensor]


def _route(logits, backend):
    routing = route(logits, 2, group_size=2, backend=backend)
    outputs = routing.weights.flatten(), routing.importance, routing.group_loss.reshape(1)
    return torch.cat(outputs)


def _group_norm(scores, backend):
    return group_norm(scores, group_size=2, backend=backend)


def _experts(name):
    def function(tensor, backend):
        inputs = {"x": X, "weights": WEIGHTS, "experts": EXPERTS, **PARAMETERS, name: tensor}
        return expert_ffn(**inputs, activation="silu", backend=backend)

    return function


PUBLIC = [
    Case("route", LOGITS, _route),
    Case("group_norm", SCORES, _group_norm),
    Case("expert_ffn-x", X, _experts("x")),
    Case("expert_ffn-weights", WEIGHTS, _experts("weights")),
    *(Case(f"expert_ffn-{n}", t, _experts(n)) for n, t in PARAMETERS.items()),
]


def _on_a_gpu(x, _backend):
    """The experts of a GPU; needs ``cpu_kernels``."""
    return grouped_ffn.expert_ffn(x, WEIGHTS, EXPERTS, *PARAMETERS.values(), "silu")


ON_A_GPU = Case("dispatch-combine", X, _on_a_gpu)

aten = torch.ops.aten
_ACTIVATIONS = (torch.nn.Identity(), functional.gelu, functional.relu, functional.silu)
_TAPS = gaussian_taps(2, 1.0)
_GROUPS, _CHOICE = Topography(4, 4, 2).as_ints, Choice(16, 2).as_ints


def op_calls() -> list[tuple[str, int, list]]:
    """(op, place of a differentiable argument, arguments) for every op and such argument."""
    ops = torch.ops.moge
    with torch.no_grad(), cpu_kernels():
        routed = ops.route(LOGITS, None, _TAPS, _GROUPS, _CHOICE, True)
        weights, experts, row_stats = routed[0], routed[1], routed[-1]
        w_in, b_in, w_out, b_out = PARAMETERS.values()
        y, kept = ops.expert_ffn(X, WEIGHTS, EXPERTS, w_in, b_in, w_out, b_out, "silu", True)
        rows, offsets, slots, positions, _ = ops.dispatch(X, EXPERTS, 4)
    upstream = [draw(5, 2), draw(16), draw(1).sum()]
    calls = [
        ("route", [0], [LOGITS, None, _TAPS, _GROUPS, _CHOICE, True]),
        ("route_backward", [0, 1, 2, 3],
         [*upstream, LOGITS, _TAPS, experts, weights, row_stats, _GROUPS, _CHOICE]),
        ("group_norm", [0], [SCORES, _TAPS, _GROUPS, True]),
        ("group_norm_backward", [0, 1], [draw(1).sum(), SCORES, _TAPS, _GROUPS]),
        ("expert_ffn", [0, 1, 3, 4, 5, 6],
         [X, WEIGHTS, EXPERTS, w_in, b_in, w_out, b_out, "silu", False]),
        ("expert_ffn_backward", [0, 1, 2, 4, 5, 6],
         [y, X, WEIGHTS, EXPERTS, w_in, w_out, b_out, kept, "silu"]),
        ("dispatch", [0], [X, EXPERTS, 4]),
        ("combine", [0, 1], [rows, WEIGHTS, slots, positions]),
        ("combine", [0], [rows, None, slots, positions]),
        ("combine_backward", [0, 1, 2], [y, rows, WEIGHTS, slots, positions]),
        ("bias_activation", [0, 1], [rows, b_out, offsets, 3]),
        ("bias_activation", [0, 1], [rows, b_out, offsets, 0]),
        ("bias_activation_backward", [0, 1, 2], [rows, rows, b_out, offsets, 3]),
        ("bias_activation_backward", [0], [rows, None, None, offsets, 0]),
        ("grouped_product", [0, 1], [rows, w_in, offsets]),
        ("grouped_outer", [0, 1], [rows, draw(*rows.shape), offsets]),
    ]  # fmt: skip
    return [(name, place, arguments) for name, places, arguments in calls for place in places]


@contextlib.contextmanager
def cpu_kernels(products: bool = True) -> Iterator[None]:
    """Kernels of a GPU's ops in plain torch, on the CPU, as csrc/cuda/rows.cuh defines them.

    Without ``products`` as where Triton is missing.
    """
    library = torch.library.Library("moge", "IMPL")
    if products:
        library.impl("grouped_product", _grouped_product, "CPU")
        library.impl("grouped_outer", _grouped_outer, "CPU")
    library.impl("dispatch", _dispatch, "CPU")
    library.impl("bias_activation", _bias_activation, "CPU")
    library.impl("bias_activation_backward", _bias_activation_backward, "CPU")
    library.impl("combine", _combine, "CPU")
    library.impl("combine_backward", _combine_backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


def _dispatch(x, experts, num_experts):
    bad = ((experts < -1) | (experts >= num_experts)).any(1)
    first_bad = torch.where(bad.any(), bad.int().argmax(), -1) if len(bad) else torch.tensor(-1)
    choices = torch.where((experts < 0) | (experts >= num_experts), -1, experts).flatten()
    bucket = torch.where(choices < 0, num_experts, choices)
    order = bucket.argsort(stable=True)
    kept = choices[order] >= 0
    offsets = torch.cat([torch.zeros(1).long(), torch.bincount(bucket, minlength=num_experts + 1)])
    slots = torch.where(kept, order, -1)
    positions = torch.where(choices < 0, -1, order.argsort()).reshape(experts.shape)
    rows = torch.where(kept[:, None], x[order // experts.shape[1]], 0)
    return rows, offsets.cumsum(0)[:-1], slots.int(), positions.int(), first_bad


def _grouped_product(rows, weight, offsets):
    kept = int(offsets[-1])
    parts = zip(rows[:kept].split(offsets.diff().tolist()), weight.unbind(), strict=True)
    dropped = rows.new_zeros(len(rows) - kept, weight.shape[1])
    return torch.cat([*(functional.linear(part, w) for part, w in parts), dropped])


def _grouped_outer(grad, rows, offsets):
    kept, sizes = int(offsets[-1]), offsets.diff().tolist()
    parts = zip(grad[:kept].split(sizes), rows[:kept].split(sizes), strict=True)
    return torch.stack([g.T @ r for g, r in parts])


def _bias_activation(rows, bias, offsets, activation):
    kept = int(offsets[-1])
    of_row = torch.repeat_interleave(torch.arange(len(bias)), offsets.diff())
    output = torch.zeros_like(rows)
    output[:kept] = _ACTIVATIONS[activation](rows[:kept] + bias[of_row])
    return output


def _relu_backward(grad, inputs):
    return aten.threshold_backward(grad, inputs, 0)


def _bias_activation_backward(grad_output, rows, bias, offsets, activation):
    kept, n = int(offsets[-1]), len(offsets) - 1
    grads = torch.zeros_like(grad_output)
    grads[:kept] = grad_output[:kept]
    of_row = torch.repeat_interleave(torch.arange(n), offsets.diff())
    if activation:
        inputs = rows[:kept] + bias[of_row]
        slope = (None, aten.gelu_backward, _relu_backward, aten.silu_backward)[activation]
        grads[:kept] = slope(grads[:kept], inputs)
    grad_bias = grads.new_zeros(n, grads.shape[1]).index_add(0, of_row, grads[:kept])
    return grads if activation else grads[:0], grad_bias


def _combine(rows, weights, slots, positions):
    gathered = torch.where(positions[..., None] >= 0, rows[positions.long()], 0)
    if weights is not None:
        gathered = gathered * weights[..., None]
    return gathered.sum(1).to(rows.dtype)


def _combine_backward(grad_y, rows, weights, slots, positions):
    gathered = torch.where(positions[..., None] >= 0, rows[positions.long()], 0)
    scaled = weights.flatten()[slots.long(), None] * grad_y[slots.long() // positions.shape[1]]
    grad_weights = (grad_y[:, None] * gathered).sum(-1).to(weights.dtype)
    return torch.where(slots[:, None] >= 0, scaled, 0).to(rows.dtype), grad_weights
