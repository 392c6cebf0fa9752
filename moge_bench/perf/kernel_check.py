"""The correctness gate before a speed pass: no speed is published for a kernel that is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moge_bench.config import RunConfig
from moge_bench.runs.record import label

if TYPE_CHECKING:
    from moge_bench.models.build import DenseFFN

# float32 against a float32 reference that sums in another order; an MoE layer's forward and
# backward differ by at most 6e-7 in the configs of the quick grid. The tight bounds, dtype by
# dtype, are in the kernels' own tests.
TOLERANCE = 1e-5


def check_kernels(configs: list[RunConfig], num_tokens: int = 256) -> None:
    """Compare an MoE layer of each size of every config, forward and backward, with the reference.

    Raises RuntimeError naming the config and the quantity that differs by more than
    ``TOLERANCE`` of its largest value (of 1e-3 where all are smaller). Plain MoE and dense
    configs have no group loss or no MoE layer, and are compared in what they have.
    """
    from moge_bench.models.build import ffns_of

    for config in configs:
        if config.moe is None or config.moe.backend == "reference":
            continue
        for ffn in ffns_of(config):
            got = _run_layer(config, ffn, config.moe.backend, num_tokens)
            for name, expected in _run_layer(config, ffn, "reference", num_tokens).items():
                # At h = 1 the loss is constant but for eps, its gradient what rounding leaves.
                bound = TOLERANCE * max(float(expected.abs().max()), 1e-3)
                worst = float((got[name] - expected).abs().max())
                if not worst <= bound:  # also true of NaN
                    raise RuntimeError(
                        f"{label(config)}: {name} differs from the reference by {worst:.1e}, more "
                        f"than {bound:.1e}; run `moge-bench doctor`"
                    )


def _run_layer(
    config: RunConfig, ffn: DenseFFN, backend: str, num_tokens: int
) -> dict[str, torch.Tensor]:
    from moge_bench.models.build import build_moe_layer

    assert config.moe is not None
    torch.manual_seed(config.seed)  # weights, tokens and gate noise, the same for both backends
    layer = build_moe_layer(ffn, config.moe.model_copy(update={"backend": backend}))
    layer.to(config.device)
    tokens = torch.randn(num_tokens, ffn.hidden_size).to(config.device).requires_grad_()
    y, aux = layer(tokens)
    found: dict[str, torch.Tensor | None] = {
        "y": y.detach(),
        "the choice of experts": aux.routing.experts.double(),
    }
    if "group" in aux.losses:  # by itself too: in the sum a large task gradient would hide it
        group, gate = aux.losses["group"], layer.router.gate.weight
        found["the group loss"] = group.detach()
        (found["the group loss's gradient"],) = torch.autograd.grad(group, gate, retain_graph=True)
    (y.square().mean() + aux.loss).backward()
    found["the gradient of x"] = tokens.grad
    for name, parameter in layer.named_parameters():
        found[f"the gradient of {name}"] = parameter.grad
    return {name: value for name, value in found.items() if value is not None}
