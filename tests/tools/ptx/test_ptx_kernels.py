"""The PTX of csrc/cuda for three architectures, interpreted, against the float64 reference.

Where nvcc is: the cases of the emulator's tests, fewer and smaller. The interpreter's checks
(races, bounds, unwritten memory, barriers) are on; a finding fails the case.
"""

from dataclasses import replace

import pytest
import torch
from ptx_kernels import Kernels
from simt_cases import Case, check_case, every_case

from moge_bench.ops import reference
from moge_bench.ops.topography import Topography, gaussian_taps
from moge_bench.perf.gpu.toolchain import find_nvcc

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed: no PTX to run")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
IN_ORDER = (0,)  # the schedule, of which the interpreter has one

# Every eleventh of the 90 cases, beginning elsewhere for each architecture: all sizes of N, dtypes,
# borders, strides, reductions and noise occur. At most 13 tokens: more than the 8 warps of a block.
CHOSEN = [
    (name, replace(case, num_tokens=min(case.num_tokens, 13)))
    for start, name in enumerate(ARCHITECTURES)
    for case in [*every_case()][4 * start :: 11]
]


@pytest.fixture(scope="session")
def kernels():
    """Return a function from an architecture to the launchers on its PTX, compiled once."""
    built: dict[str, Kernels] = {}

    def of(architecture: str) -> Kernels:
        if architecture not in built:
            built[architecture] = Kernels(architecture)
        return built[architecture]

    return of


@pytest.mark.parametrize(
    ("architecture", "case"), CHOSEN, ids=[f"{name}-{case}" for name, case in CHOSEN]
)
def test_routing_forward_and_backward(kernels, architecture, case):
    check_case(kernels(architecture), case, IN_ORDER)


@pytest.mark.parametrize("case", [
    Case(0, 16, 2),
    Case(5, 40, 40, renormalize=False),  # k beyond a warp
    Case(70, 64, 2, noisy=True),  # three blocks: the second kernel has parts to add
    Case(7, 24, 3, group_size=4, stride=5, border="valid", map_shape=(4, 6)),
    Case(7, 12, 3, map_shape=(2, 6), group_size=7),  # the window is larger than the torus
], ids=str)  # fmt: skip
def test_special_cases(kernels, case):
    check_case(kernels("sm_90"), case, IN_ORDER)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_are_not_finite(kernels, architecture):
    logits = (torch.randn(5, 33) * 64).round() / 64
    logits[0, 2], logits[1, 0], logits[2] = torch.nan, torch.inf, -torch.inf
    logits[3, :31] = -torch.inf  # masked experts: scores of 0
    ours = kernels(architecture).route(logits, 3, strict=True)
    truth = reference.route(logits.double(), None, None, 3, None, True)
    assert torch.equal(ours["experts"], truth[1])
    torch.testing.assert_close(ours["weights"].double(), truth[0], rtol=1e-5, atol=1e-7,
                               equal_nan=True)  # fmt: skip
    assert ours["bad_rows"].tolist() == [0, -1] and ours["importance"].isnan().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_group_norm_of_any_scores(kernels, architecture, dtype):
    border, num_experts = {
        torch.float32: ("torus", 36), torch.float16: ("valid", 300), torch.bfloat16: ("torus", 64),
    }[dtype]  # fmt: skip
    scores = torch.randn(9, num_experts).to(dtype)
    topo = Topography(4, num_experts // 4, 3, 2, border, "official_image")
    taps = gaussian_taps(3, 1.0)
    oracle = scores.double().requires_grad_()
    loss = reference.group_norm(oracle, taps, topo)
    grad_loss = torch.tensor(1500.0)  # so that float16 gradients are normal numbers
    loss.backward(grad_loss.double())
    ours, bad = kernels(architecture).group_norm(scores, taps, topo, strict=True)
    grad = kernels(architecture).group_norm_backward(grad_loss, scores, taps, topo)
    assert bad[0].item() == -1
    torch.testing.assert_close(ours.double(), loss.detach(), rtol=1e-6, atol=0)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(
        grad.double(), oracle.grad, rtol=2 * unit + 2e-6, atol=1e-6 * oracle.grad.abs().max()
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(60, 8, 2), (9, 300, 3)])
def test_choices_are_sorted_by_expert(kernels, architecture, num_tokens, num_experts, top_k):
    generator = torch.Generator().manual_seed(num_tokens)
    experts = torch.randint(0, num_experts, (num_tokens, top_k), generator=generator)
    experts[4, 0], experts[7, 1] = -1, num_experts  # dropped, and dropped and noted
    ours = kernels(architecture).sort_choices(experts, num_experts, strict=True)
    flat = experts.flatten()
    kept = ((flat >= 0) & (flat < num_experts)).nonzero().flatten()
    order = kept[flat[kept].argsort(stable=True)]  # ties in the order of the choices
    counts = torch.bincount(flat[kept], minlength=num_experts)
    assert ours["offsets"].tolist() == [0, *counts.cumsum(0).tolist()]
    assert ours["slots"].tolist() == [*order.tolist(), -1, -1]
    positions = torch.full_like(flat, -1)
    positions[order] = torch.arange(len(order))
    assert torch.equal(ours["positions"].flatten().long(), positions)
    assert ours["bad_row"].item() == 7


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "hidden_size", "shift"), [
    (torch.float32, 20, 0), (torch.float16, 64, 1), (torch.bfloat16, 7, 0),
])  # fmt: skip
def test_rows_move_there_and_back(kernels, architecture, dtype, hidden_size, shift):
    on, num_tokens, top_k = kernels(architecture), 11, 2
    order = torch.randperm(num_tokens * top_k, generator=torch.Generator().manual_seed(1))
    slots, positions = order.to(torch.int32), order.argsort().to(torch.int32)
    slots[-1] = -1  # one choice is dropped
    positions[positions == num_tokens * top_k - 1] = -1
    positions = positions.view(num_tokens, top_k)
    source, grad = (torch.randn(num_tokens, hidden_size).to(dtype) for _ in range(2))
    rows = torch.randn(num_tokens * top_k, hidden_size).to(dtype)
    weights = torch.rand(num_tokens, top_k)
    gathered = source.double()[slots.clamp(min=0).long() // top_k]
    scale = weights.flatten()[slots.clamp(min=0).long()].double()
    present = (slots >= 0)[:, None]
    picked = rows.double()[positions.clamp(min=0).long()] * (positions >= 0)[..., None]
    for ours, truth in (
        (on.gather_rows(source, None, slots, top_k, shift=shift), gathered * present),
        (on.gather_rows(source, weights, slots, top_k, shift=shift),
         gathered * scale[:, None] * present),
        (on.combine_rows(rows, weights, positions, shift=shift),
         (picked * weights.double()[..., None]).sum(1)),
        (on.combine_weight_grad(grad, rows, positions, shift=shift),
         (picked * grad.double()[:, None]).sum(2)),
    ):  # fmt: skip
        rounding = torch.finfo(ours.dtype).eps / 2
        torch.testing.assert_close(
            ours.double(), truth, rtol=rounding * 1.01 + 1e-6, atol=1e-6 * truth.abs().max().item()
        )
