"""The CUDA kernels on the CPU against the float64 reference, in the plain and the traced build.

Every size class, dtype, border, stride, reduction and k, forward and backward, under schedules that
must agree to the bit: see tools/simt/cases.py.
"""

import ctypes
from pathlib import Path

import pytest
import torch

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import Topography, gaussian_taps
from tools.simt import launch
from tools.simt.build import library as build_library
from tools.simt.cases import SPECIAL, Case, draw_not_finite, every_case
from tools.simt.checks import check_case, check_group_norm, check_not_finite, check_rows_apart
from tools.simt.kernels import CUDA, Kernels


@pytest.fixture(scope="module")
def kernels():
    return Kernels("plain")


@pytest.fixture(scope="module")
def traced():
    return Kernels("trace")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_of_16_bit_numbers_are_those_of_torch(kernels, dtype):
    name = "half" if dtype == torch.float16 else "bfloat16"
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    values = torch.empty(65536)
    to_float = getattr(kernels.library, f"test_{name}_to_float")
    to_float(ctypes.c_void_p(every.data_ptr()), ctypes.c_void_p(values.data_ptr()), 65536)
    assert torch.equal(values.nan_to_num(nan=-7), every.view(dtype).float().nan_to_num(nan=-7))

    # Both neighbours of every value and the middle between it and the next, where ties go to even.
    middles = (values + values.roll(-1)) / 2
    numbers = torch.cat([values, middles, middles.nextafter(values), middles * 1.0001])
    rounded = torch.empty(numbers.numel(), dtype=torch.uint16)
    from_float = getattr(kernels.library, f"test_float_to_{name}")
    from_float(
        ctypes.c_void_p(numbers.data_ptr()), ctypes.c_void_p(rounded.data_ptr()), numbers.numel()
    )
    ours, theirs = rounded.view(dtype), numbers.to(dtype)
    assert torch.equal(ours.isnan(), theirs.isnan())
    finite = ~theirs.isnan()
    assert torch.equal(ours[finite].view(torch.int16), theirs[finite].view(torch.int16))


@pytest.mark.parametrize("case", [*every_case(), *SPECIAL], ids=str)
def test_routing_against_the_reference(kernels, case):
    check_case(kernels, case, launch.SCHEDULES)


@pytest.mark.parametrize("case", [*every_case(), *SPECIAL], ids=str)
def test_every_access_of_routing_is_sound(traced, case):
    check_case(traced, case, launch.SCHEDULES[2:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_experts", [5, 8, 16, 32, 64, 128, 256, 300])
def test_rows_that_are_not_finite(kernels, traced, dtype, num_experts):
    """Masked experts are scores of 0; NaN, +inf and rows of -inf make NaN weights, not nonsense."""
    logits, noise = draw_not_finite(num_experts, dtype)
    for built in (kernels, traced):
        for k in (1, 3, 5, min(8, num_experts)):
            for renormalize in (True, False):
                check_not_finite(built, logits, k, [1, 4], noise, renormalize)


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("border", ["valid", "torus"])
@pytest.mark.parametrize("num_experts", [8, 16, 32, 33, 64, 128, 256])
def test_rows_that_are_not_finite_keep_to_themselves(traced, num_experts, border, group_size):
    case = Case(6, num_experts, 2, group_size=group_size, border=border, renormalize=False)
    check_rows_apart(traced, case)


def test_equal_values_go_to_the_lower_index_on_every_lane(kernels):
    for num_experts in (7, 64, 100, 1024):
        logits = torch.zeros(3, num_experts)
        logits[1, 5:] = 1.0
        logits[2, ::3] = -1.0
        for k in (1, 4, 7):
            ours = kernels.route(logits, k)
            assert torch.equal(ours["experts"], reference.select_experts(logits, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_experts", [1, 33, 64, 300, 1024])
@pytest.mark.parametrize("border", ["valid", "torus"])
def test_group_norm_of_any_scores(kernels, traced, dtype, num_experts, border):
    builds = [*((kernels, schedule) for schedule in launch.SCHEDULES), (traced, 0)]
    check_group_norm(builds, dtype, num_experts, border)


def test_group_norm_notes_the_first_bad_row(kernels):
    topo, taps = Topography(4, 4, 2), gaussian_taps(2, 1.0)
    scores = torch.rand(40, 16)
    scores[23, 3], scores[35, 0] = torch.inf, torch.nan
    loss, bad = kernels.group_norm(scores, taps, topo, strict=True)
    assert bad[0].item() == 23 and not loss.isfinite()


def test_an_expert_index_out_of_range_is_skipped_in_backward(traced):
    logits = torch.randn(5, 6)
    routed = traced.route(logits, 2)
    routed["experts"][2, 1], routed["experts"][3, 0] = 6, -1
    grad = traced.route_backward((torch.ones(5, 2), None, None), logits, routed)
    assert grad.isfinite().all()


@pytest.mark.parametrize(("rows", "cols", "group_size"), [
    # 8 slices of N scores and a margin of rows (h - 1), N counters, 2 h taps, 4 bytes each: with
    # 32 x 32 and h = 12, 4 (8 (1024 + 352) + 1024 + 24) = 48224, which with 1376 static bytes is
    # more than 49152.
    (32, 32, 12), (32, 32, 13), (25, 40, 11), (30, 32, 14), (30, 32, 15), (32, 32, 16),
    (32, 32, 17),
])  # fmt: skip
def test_static_and_dynamic_shared_memory_together_are_asked_for(kernels, rows, cols, group_size):
    topo, taps = Topography(rows, cols, group_size, border="torus"), gaussian_taps(group_size, 1.0)
    scores = torch.rand(2, rows * cols)
    loss = kernels.route(scores, 1, taps=taps, topo=topo)["group_loss"]
    truth = reference.group_norm(scores.double().softmax(dim=1), taps, topo)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    truth = reference.group_norm(scores.double(), taps, topo)
    torch.testing.assert_close(
        kernels.group_norm(scores, taps, topo)[0].double(), truth, rtol=1e-5, atol=0
    )


def test_a_refused_opt_in_is_an_error_with_its_text():
    source = Path(__file__).with_name("shared_limit.cu")
    library = launch.load(build_library((source, CUDA / "launcher.cu"), "plain"))
    library.moge_cuda_last_error.restype = ctypes.c_char_p
    assert library.ask_for_shared(227 << 10) == 0
    assert library.ask_for_shared((227 << 10) + 1) != 0
    assert b"at most 227 KiB" in library.moge_cuda_last_error()


def test_tokens_whose_numbers_do_not_fit_take_a_warp_each():
    """A sub-warp numbers units, 16 a token at N = 256, and choices, at most 8, by 32 bits."""
    source = Path(__file__).with_name("sub_warp_calls.cu")
    takes = launch.load(build_library((source, CUDA / "launcher.cu"), "plain")).is_sub_warp
    takes.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int]
    assert takes(1 << 27, 256, 8) and takes(1 << 27, 8, 1)
    assert not takes((1 << 27) + 1, 256, 8) and not takes((1 << 27) + 1, 8, 1)
    assert not takes(1, 64, 9) and not takes(1, 100, 1)


@pytest.mark.parametrize(("num_tokens", "chunks"), [
    # 32 tokens a chunk while there are 1024 chunks at most; then 64, 128, and never more than 256.
    (0, 1), (33, 2), (32768, 1024), (32769, 513), (1 << 18, 1024), (1 << 20, 4096),
])  # fmt: skip
def test_chunks_follow_from_the_number_of_tokens(kernels, num_tokens, chunks):
    size = kernels.library.moge_cuda_route_workspace_bytes(num_tokens, 64)
    # Loss and two first bad rows, 8 bytes each; importance and counts of each expert, 4 each.
    assert size == chunks * (3 * 8 + 64 * (4 + 4))


@pytest.mark.parametrize("num_experts", [64, 100])  # a sub-warp a token, and a warp
def test_first_choices_are_counted_apart(kernels, num_experts):
    logits = torch.randn(700, num_experts)
    ours = kernels.route(logits, 3)
    first = torch.bincount(ours["experts"][:, 0], minlength=num_experts)
    assert torch.equal(ours["first_load"], first)
    assert ours["load"].sum() == 3 * 700


# Around 5e8, from where on the sub-warp kernels take powers of 2, and far beyond.
@pytest.mark.parametrize("magnitude", [1e4, 1e7, 2e8, 5e8, 6e8, 2e9, 1e30, 1e38])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_logits(kernels, magnitude, sign):
    topo, taps = Topography(8, 8, 3), gaussian_taps(3, 1.0)
    logits = (torch.rand(40, 64) * 2 + 1) * magnitude * sign
    logits[:, 7] = logits[:, 8]
    ours = kernels.route(logits, 2, taps=taps, topo=topo)
    grads = torch.randn(40, 2), torch.randn(64), torch.ones(())
    grad = kernels.route_backward(grads, logits, ours, taps=taps, topo=topo)
    x = logits.double().requires_grad_()
    weights, experts, importance, loss, *_ = reference.route(x, None, taps, topo, Choice(64, 2))
    outputs = [value.double() for value in grads]
    (truth,) = torch.autograd.grad((weights, importance, loss), x, outputs)
    assert torch.equal(ours["experts"], experts)
    for name, value in (("importance", importance), ("group_loss", loss), ("weights", weights)):
        torch.testing.assert_close(ours[name].double(), value.detach(), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(grad.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_experts", [64, 100])
def test_one_row_of_noise_is_every_tokens(kernels, num_experts):
    logits, noise = torch.randn(40, num_experts), 3 * torch.randn(num_experts)
    one, all_rows = (
        kernels.route(logits, 2, noise=rows)
        for rows in (noise, noise.expand(40, num_experts).contiguous())
    )
    assert all(torch.equal(one[name], all_rows[name]) for name in one)


def test_errors_name_what_is_wrong(kernels):
    with pytest.raises(RuntimeError, match="experts"):
        kernels.route(torch.zeros(1, 1025), 1)


def test_a_case_prints_as_its_settings():
    assert str(Case(1, 2, 1)) == "T1-N2-k1-float32-h3-torus"
