"""The PTX of csrc/cuda for three architectures, interpreted, against the float64 reference.

Where nvcc is: the cases of the emulator's tests, fewer and smaller. The interpreter's checks
(races, bounds, unwritten memory, barriers) are on; a finding fails the case.
"""

import re
from dataclasses import replace

import pytest
import torch
from ptx_kernels import CACHE, CSRC, SM_80, Kernels

from moge_bench.ops.topography import default_map_shape
from tools import ptx
from tools.gpu_check.architectures import BY_NAME
from tools.gpu_check.toolchain import Toolchain, find_nvcc
from tools.ptx.counters import names_halves
from tools.ptx.program import Register, Vector
from tools.simt.cases import DTYPES, Case, draw_not_finite, every_case
from tools.simt.checks import (
    by_kernels,
    check_case,
    check_group_norm,
    check_not_finite,
    check_rows_apart,
)
from tools.simt.dispatch_checks import check_biases, check_rows, check_sorted
from tools.simt.wider_checks import CASES, check_unit_norm, check_wider

pytestmark = [
    pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed: no PTX to run"),
    pytest.mark.slow,
]
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


# Every map of the sub-warp kernels that has a filter.
SUB_MAPS = [
    (num_experts, group_size, border)
    for num_experts in (8, 16, 32, 64, 128, 256)
    for border in ("valid", "torus")
    for group_size in (2, 3, 4, 5)
    if border == "torus" or group_size <= min(default_map_shape(num_experts))
]


@pytest.mark.parametrize(("num_experts", "group_size", "border"), SUB_MAPS)
def test_two_floats_at_a_time_are_the_bits_of_one(kernels, num_experts, group_size, border):
    """sm_100 adds and multiplies pairs, by the same source (pairs.cuh)."""
    dtype = DTYPES[(num_experts // 8 + group_size) % 3]
    case = Case(5, num_experts, 2, dtype, group_size, border=border, noisy=border == "torus")
    alone, in_pairs = by_kernels(kernels("sm_90"), case), by_kernels(kernels("sm_100"), case)
    for name, value in alone.items():
        assert torch.equal(value, in_pairs[name]), name
    assert torch.isfinite(alone["grad_logits"]).all()
    assert alone["grad_logits"].abs().max() > 0


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_pairs_of_floats_and_that_no_float_is_in_two(direction):
    """A float beside two others, or on both sides, would have to be moved: the count leaves out
    what joins and parts pairs."""
    toolchain, source = Toolchain(find_nvcc(), "", CACHE), CSRC / f"cuda/subwarp_{direction}.cu"
    texts = {name: toolchain.ptx(source, CSRC, BY_NAME[name]).read_text() for name in ARCHITECTURES}
    pairs = {name: ".f32x2" in text for name, text in texts.items()}
    assert pairs == {"sm_80": False, "sm_90": False, "sm_100": True}
    for kernel in ptx.parse(texts["sm_100"]).kernels.values():
        places: dict[Register, tuple[Register, str]] = {}
        for instruction in filter(names_halves, kernel.code):
            (halves,) = (item.items for item in instruction.operands if isinstance(item, Vector))
            low, high = halves
            if low == high or not all(isinstance(half, Register) for half in halves):
                continue  # the same float twice: an operand of its own, as is a number
            for half, place in ((low, (high, "low")), (high, (low, "high"))):
                assert places.setdefault(half, place) == place, instruction.where


# A token of one lane, of several, and a warp a token.
@pytest.mark.parametrize(("architecture", "num_experts", "border"), [
    ("sm_100", 8, "valid"), ("sm_90", 64, "valid"), ("sm_100", 64, "valid"),
    ("sm_100", 128, "torus"), ("sm_80", 33, "valid"),
])  # fmt: skip
def test_rows_that_are_not_finite_keep_to_themselves(kernels, architecture, num_experts, border):
    case = Case(6, num_experts, 2, group_size=2, border=border)
    check_rows_apart(kernels(architecture), case)


FUNCTION = re.compile(r"^\s+(?:@!?%p\d+ )?((?:div|rem|sqrt|rsqrt|rcp|ex2|lg2|sin|cos)\.\S+)", re.M)


@pytest.mark.parametrize(("source", "root"), [
    ("subwarp_forward", "sqrt.approx.ftz.f32"), ("subwarp_backward", "rsqrt.approx.ftz.f32"),
])  # fmt: skip
def test_sub_warp_kernels_call_no_function_that_is_several_instructions(source, root):
    """ptxas makes 4 of rsqrt.approx.f32 and dozens of a division: the counts of PTX hide them."""
    toolchain = Toolchain(find_nvcc(), "", CACHE)
    text = toolchain.ptx(CSRC / f"cuda/{source}.cu", CSRC, SM_80).read_text()
    assert {*FUNCTION.findall(text)} == {"ex2.approx.ftz.f32", "rcp.approx.ftz.f32", root}


@pytest.mark.parametrize("case", [
    Case(0, 16, 2),
    Case(5, 40, 40, renormalize=False),  # k beyond a warp
    Case(70, 64, 2, noisy=True),  # three blocks: the second kernel has parts to add
    Case(7, 24, 3, group_size=4, stride=5, border="valid", map_shape=(4, 6)),
    Case(7, 12, 3, map_shape=(2, 6), group_size=7),  # the window is larger than the torus
    Case(7, 64, 2, border="valid", sigma=0.02),  # sub-warp: the middle tap is 1, the others 0
    Case(7, 256, 2, border="valid", group_size=5, sigma=20.0),
    Case(13, 8, 3, torch.bfloat16, group_size=2, border="valid"),  # sub-warp: one lane a token
    Case(13, 16, 8, torch.float16, noisy=True, renormalize=False),  # two
], ids=str)  # fmt: skip
def test_special_cases(kernels, case):
    check_case(kernels("sm_90"), case, IN_ORDER)


# Of each number of lanes a token has, and of a warp a token, every dtype on some architecture.
@pytest.mark.parametrize(("architecture", "num_experts", "dtype"), [
    (ARCHITECTURES[i % 3], num_experts, DTYPES[(i + i // 3) % 3])
    for i, num_experts in enumerate((8, 16, 32, 64, 128, 256, 64, 33, 64))
])  # fmt: skip
def test_rows_that_are_not_finite(kernels, monkeypatch, architecture, num_experts, dtype):
    """Races of these rows are the emulator's to find: their barrier is one token's."""
    built = kernels(architecture)
    monkeypatch.setattr(built, "races", False)
    logits, noise = draw_not_finite(num_experts, dtype)
    for k, renormalize in ((1, True), (8, False)):
        check_not_finite(built, logits, k, [1, 4], noise, renormalize)
    check_not_finite(built, logits, 3, [1, -1])


# Every case once, in each dtype and for each architecture a third of them.
@pytest.mark.parametrize("case", [
    (ARCHITECTURES[i % 3], DTYPES[(i + i // 3) % 3], replace(case, num_tokens=9))
    for i, case in enumerate(CASES)
], ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")  # fmt: skip
def test_wider_routing(kernels, case):
    architecture, dtype, case = case
    check_wider(kernels(architecture), case, dtype, IN_ORDER)


@pytest.mark.parametrize(("architecture", "dtype", "num_experts", "masked"), [
    ("sm_80", torch.float32, 12, True), ("sm_90", torch.bfloat16, 300, False),
    ("sm_100", torch.float16, 64, True),
])  # fmt: skip
def test_group_norm_of_unit_energy(kernels, architecture, dtype, num_experts, masked):
    check_unit_norm(kernels(architecture), num_experts, "token_mean", dtype, masked)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_group_norm_of_any_scores(kernels, architecture, dtype):
    border, num_experts = {
        torch.float32: ("torus", 36), torch.float16: ("valid", 300), torch.bfloat16: ("torus", 64),
    }[dtype]  # fmt: skip
    check_group_norm([(kernels(architecture), 0)], dtype, num_experts, border)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(60, 8, 2), (9, 300, 3)])
def test_choices_are_sorted_by_expert(kernels, architecture, num_tokens, num_experts, top_k):
    generator = torch.Generator().manual_seed(num_tokens)
    experts = torch.randint(0, num_experts, (num_tokens, top_k), generator=generator)
    experts[4, 0], experts[7, 1] = -1, num_experts  # dropped, and dropped and noted
    check_sorted(kernels(architecture), experts, num_experts, bad_row=7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "hidden_size", "shift"), [
    (torch.float32, 20, 0), (torch.float16, 64, 1), (torch.bfloat16, 7, 0),
])  # fmt: skip
def test_rows_move_there_and_back(kernels, architecture, dtype, hidden_size, shift):
    check_rows(kernels(architecture), IN_ORDER, dtype, 11, hidden_size, 5, 2, shift)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "size", "activation", "shift"), [
    (torch.float32, 20, 1, 0), (torch.float16, 64, 3, 1), (torch.bfloat16, 24, 1, 0),
    (torch.bfloat16, 7, 0, 0), (torch.float32, 5, 2, 0),
])  # fmt: skip
def test_biases_and_activations(kernels, architecture, dtype, size, activation, shift):
    counts = (3, 0, 129, 1)
    check_biases(kernels(architecture), IN_ORDER, dtype, counts, size, 2, activation, shift)
