"""The MoE layer against other libraries' and against one dense FFN of the same useful work.

Routing takes the case's logits in every candidate, so that the skew is the declared one; the
linear gate, equal for all, is left out. Legend: T tokens, N experts, k chosen, d hidden size,
f hidden size of an expert.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from moge_bench.moe.experts import Experts
from moge_bench.ops import reference, reference_experts
from moge_bench.ops.choice import Choice
from moge_bench.perf import peers, verify
from moge_bench.perf.candidates import ROUTERS, Candidate, Options, softmax_topk
from moge_bench.perf.registry import DTYPES, Case, make_logits

ACTIVATION = "gelu"
Layer = Callable[[], tuple[list[torch.Tensor], list[torch.Tensor]]]


def useful_flop(case: Case) -> float:
    """Return the floating-point operations of the expert matrix products, forward + backward.

    2 matrices of d f multiply-adds per choice, 2 operations each, and twice that again backward.
    """
    return 3 * 2 * 2 * case.num_tokens * case.top_k * case.hidden_size * case.ffn_size


def _without_ties(logits: torch.Tensor) -> torch.Tensor:
    """Return logits of 16 bits as multiples of 1/8 in the same order; others as they are.

    Rounded to 16 bits many are equal, and libraries break ties their own way: the outputs of a
    layer would differ for a reason that is no error.
    """
    if logits.dtype == torch.float32:
        return logits
    return (logits.float().argsort(dim=1, stable=True).argsort(1) / 8).to(logits.dtype)


class LayerTask:
    """Inputs and weights of one layer case, its float64 oracle, and the step of every candidate."""

    def __init__(self, case: Case, options: Options) -> None:
        self.case, self.options = case, options
        generator = torch.Generator().manual_seed(case.seed + 2)
        dtype, device = DTYPES[case.dtype], options.device
        d, f, n = case.hidden_size, case.ffn_size, case.num_experts

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            values = torch.randn(*shape, generator=generator) * scale
            return values.to(device=device, dtype=dtype).requires_grad_()

        self.x = draw(case.num_tokens, d)
        self.w_in, self.w_out = draw(n, f, d, scale=d**-0.5), draw(n, d, f, scale=f**-0.5)
        self.logits = _without_ties(make_logits(case)).to(device).requires_grad_()
        self.cotangent = torch.randn(case.num_tokens, d, generator=generator).to(device, dtype)
        self.truth = self._oracle(torch.float64)
        self.plain = self._oracle(dtype)  # torch's own products in the case's dtype

    def _oracle(self, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [self.x, self.logits, self.w_in, self.w_out]
        x, logits, w_in, w_out = (t.detach().to(dtype).requires_grad_() for t in leaves)
        case = self.case
        choice = Choice(case.num_experts, case.top_k, case.renormalize)
        weights, experts, *_ = reference.route(logits, None, None, None, choice)
        y = reference_experts.expert_ffn(x, weights, experts, w_in, None, w_out, None, ACTIVATION)
        grads = torch.autograd.grad(y, [x, logits, w_in, w_out], self.cotangent.to(dtype))
        return [y.detach(), *grads]

    def layer(self, candidate: Candidate) -> Callable[[], list[torch.Tensor]]:
        """Return a step that gives [y, dx, dlogits, dw_in, dw_out] of one candidate."""
        case, leaves = self.case, [self.x, self.logits, self.w_in, self.w_out]
        if candidate.name.startswith("ours"):
            route = ROUTERS[0].build(case, self.options)
            experts_module = Experts(
                case.hidden_size, case.ffn_size, case.num_experts, activation=ACTIVATION,
                bias=False, backend=self.options.backend,
            )  # fmt: skip
            experts_module.w_in = torch.nn.Parameter(self.w_in.detach())
            experts_module.w_out = torch.nn.Parameter(self.w_out.detach())
            leaves = [self.x, self.logits, experts_module.w_in, experts_module.w_out]

            def step() -> list[torch.Tensor]:
                weights, experts, loss = route(self.logits)
                y = experts_module(self.x, weights, experts)
                assert loss is not None
                grads = torch.autograd.grad(
                    [y, loss], leaves, [self.cotangent, torch.zeros_like(loss)]
                )
                return [y, *grads]

            return step
        implementation = candidate.name.removeprefix("transformers_")
        w_in, w_out = self.w_in.detach(), self.w_out.detach()
        block, parameters = peers.transformers_experts(case, implementation, w_in, w_out)
        leaves = [self.x, self.logits, *parameters]

        def peer_step() -> list[torch.Tensor]:
            _, (weights, experts, _) = softmax_topk(self.logits, case)
            y = block(self.x, weights, experts)
            return [y, *torch.autograd.grad(y, leaves, self.cotangent)]

        return peer_step

    def dense_step(self) -> Callable[[], list[torch.Tensor]]:
        """Return a step of one FFN d -> k f -> d: the same useful multiply-adds, no routing."""
        d, wide = self.case.hidden_size, self.case.top_k * self.case.ffn_size
        generator = torch.Generator().manual_seed(self.case.seed + 3)
        w_in = torch.randn(wide, d, generator=generator).to(self.x).mul_(d**-0.5).requires_grad_()
        w_out = torch.randn(d, wide, generator=generator).to(self.x).mul_(wide**-0.5)
        w_out.requires_grad_()

        def step() -> list[torch.Tensor]:
            y = F.linear(F.gelu(F.linear(self.x, w_in)), w_out)
            return [y, *torch.autograd.grad(y, [self.x, w_in, w_out], self.cotangent)]

        return step

    def prepare(self, candidate: Candidate) -> tuple[Callable[[], object], verify.Verdict]:
        """Return the step to time and the verdict on what that step computes."""
        if candidate.job == "dense":
            return self.dense_step(), verify.Verdict(True, "a limit", {}, {}, 0, 0)
        step = self.layer(candidate)
        names = ("y", "grad_x", "grad_logits", "grad_w_in", "grad_w_out")
        errors, bounds = {}, {}
        for name, got, want, own in zip(names, step(), self.truth, self.plain, strict=True):
            unit = torch.finfo(got.dtype).eps
            errors[name] = verify.relative_error(got.detach(), want)
            bounds[name] = verify.FACTOR * verify.relative_error(own, want) + unit
        bad = [n for n in names if not errors[n] <= bounds[n]]
        detail = "; ".join(f"{n} error {errors[n]:.2e} above {bounds[n]:.2e}" for n in bad)
        return step, verify.Verdict(not bad, detail or "within bounds", errors, bounds, 0, 0)


def _unused(case: Case, options: Options) -> None:
    raise AssertionError("a layer candidate is built by LayerTask")


LAYERS = tuple(
    Candidate(name, job, _unused, peer=peer)  # type: ignore[arg-type]
    for name, job, peer in (
        ("ours", "moe_layer", False),
        ("transformers_eager", "moe_layer", True),
        ("transformers_grouped_mm", "moe_layer", True),
        ("dense_ffn", "dense", False),
    )
)
