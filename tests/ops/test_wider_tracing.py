"""The ops of the wider routing under opcheck and torch.compile; as graphs: test_without_values."""

import pytest
import torch
from wider_cases import DOUBLE, OPTIONS, call, objective

from moge_bench import route
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import Topography, gaussian_taps

ops = torch.ops.moge


@pytest.mark.parametrize("name", ["DeepSeek-V3", "mask", "all"])
def test_opcheck(name):
    options = OPTIONS[name]

    def given(*names):
        return {key: options[key] for key in names if key in options}

    choice = Choice(
        16, options.get("top_k", 2), **given("score_function", "num_groups", "top_groups", "scale")
    )
    groups = Topography(4, 4, 3, **given("border", "reduction", "unit_energy")).as_ints
    mask, bias, taps = options.get("mask"), options.get("bias"), gaussian_taps(3, 1.0)
    logits = torch.randn(40, 16, requires_grad=True)
    plan, masked = (groups, choice.as_ints), {"mask": mask, "scale": choice.scale}
    arguments = (None, taps, *plan, True)
    torch.library.opcheck(ops.route.default, (logits, *arguments), {"bias": bias, **masked})
    logits = logits.detach()
    weights, experts, *_, row_stats = ops.route(logits, *arguments, bias=bias, **masked)
    grads = torch.randn_like(weights), torch.randn(16), torch.tensor(1.0)
    torch.library.opcheck(
        ops.route_backward.default, (*grads, logits, taps, experts, weights, row_stats, *plan),
        masked,
    )  # fmt: skip
    scores = torch.rand(40, 16, requires_grad=True)
    torch.library.opcheck(ops.group_norm.default, (scores, taps, groups, True), {"mask": mask})
    torch.library.opcheck(
        ops.group_norm_backward.default, (torch.tensor(1.0), scores.detach(), taps, groups),
        {"mask": mask},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["DeepSeek-V3", "unit energy", "all"])
def test_compiles_into_one_graph(name):
    def loss(logits):
        return objective(call(logits, "extension", **OPTIONS[name]))

    torch.compiler.reset()
    logits = torch.randn(40, 16, dtype=DOUBLE)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits), loss(logits))


def test_the_check_of_finite_logits_is_compiled_too():
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: route(x, 2, score_function="sigmoid").weights, backend="aot_eager", fullgraph=True
    )
    compiled(torch.randn(4, 16))
    with pytest.raises((ValueError, RuntimeError), match="logits must be finite"):
        compiled(torch.full((4, 16), torch.nan))
