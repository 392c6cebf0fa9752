"""moge::grouped_product and moge::grouped_outer, Triton's kernels, against float64."""

import pytest
import torch

from moge_bench.ops import grouped_product

OPS = torch.ops.moge
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make(sizes, dropped, outer, inner, dtype=torch.float32):
    """Rows, weight, upstream gradient and offsets of experts with ``sizes`` rows each."""
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    num_rows = sum(sizes) + dropped
    drawn = torch.randn(num_rows, inner), torch.randn(len(sizes), outer, inner)
    return [*(t.to(dtype) for t in (*drawn, torch.randn(num_rows, outer))), offsets]


def exact(rows, weight, upstream, offsets):
    """Product and both gradients, an expert at a time, in the dtype of what is given."""
    output, of_rows = torch.zeros_like(upstream), torch.zeros_like(rows)
    of_weight = torch.zeros_like(weight)
    for e in range(len(weight)):
        own = slice(int(offsets[e]), int(offsets[e + 1]))
        output[own] = rows[own] @ weight[e].T
        of_rows[own] = upstream[own] @ weight[e]
        of_weight[e] = upstream[own].T @ rows[own]
    return output, of_rows, of_weight


def run(rows, weight, upstream, offsets):
    rows, weight = rows.clone().requires_grad_(), weight.clone().requires_grad_()
    output = OPS.grouped_product(rows, weight, offsets)
    output.backward(upstream)
    return output.detach(), rows.grad, weight.grad


def test_by_hand():
    # Expert 0 has row 0, expert 1 none, expert 2 rows 1 and 2; row 3 is of a dropped choice.
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [torch.nan, torch.nan]])
    weight = torch.tensor([[[1.0, 10.0]], [[7.0, 7.0]], [[2.0, 0.5]]])
    offsets = torch.tensor([0, 1, 1, 3])
    # 1 + 20, 6 + 2, 10 + 3.
    assert OPS.grouped_product(rows, weight, offsets).tolist() == [[21.0], [8.0], [13.0], [0.0]]
    grad = torch.tensor([[2.0], [1.0], [3.0], [torch.nan]])
    # Expert 2: 1 * (3, 4) + 3 * (5, 6) = (18, 22).
    expected = [[[2.0, 4.0]], [[0.0, 0.0]], [[18.0, 22.0]]]
    assert OPS.grouped_outer(grad, rows, offsets).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "dropped", "outer", "inner"),
    [
        (
            [10, 0, 130, 1, 64, 0],
            70,
            70,
            33,
        ),  # no size a multiple of a tile's, experts without rows
        ([0, 150, 0], 0, 16, 64),  # one expert has all rows
        ([3], 0, 130, 3),
    ],
)
def test_as_exact_as_torch(sizes, dropped, outer, inner, dtype, device):
    """At most twice the error of a product an expert, whose sums are float32 too."""
    inputs = make(sizes, dropped, outer, inner, dtype)
    truths = exact(*(t.double() if t.is_floating_point() else t for t in inputs))
    for ours, plain, truth in zip(run(*inputs), exact(*inputs), truths, strict=True):
        assert ours.dtype == dtype and ours.shape == truth.shape
        unit = torch.finfo(dtype).eps * truth.abs().max()
        bound = 2 * (plain.double() - truth).abs().max() + unit
        assert (ours.double() - truth).abs().max() <= bound


@pytest.mark.parametrize(("sizes", "dropped"), [([0, 0], 0), ([0, 0, 0], 70), ([1] * 9, 0)])
def test_few_rows(sizes, dropped):
    inputs = make(sizes, dropped, 5, 7)
    for ours, truth in zip(run(*inputs), exact(*inputs), strict=True):
        torch.testing.assert_close(ours, truth)


def test_nan_stays_with_its_expert(device):
    """As where a tile's last rows are of the next expert, and where NaN lay in the output."""
    rows, weight, upstream, offsets = make([5, 70, 9], 3, 8, 8)
    rows[5:75], upstream[5:75] = torch.nan, torch.nan
    poison = [torch.full((2**16,), torch.nan, device=device) for _ in range(8)]
    del poison
    output, of_rows, of_weight = run(rows, weight, upstream, offsets)
    for values in (output, of_rows):
        assert values[5:75].isnan().all() and values[:5].isfinite().all()
        assert values[75:].isfinite().all() and (values[84:] == 0).all()
    assert of_weight[1].isnan().all() and of_weight[[0, 2]].isfinite().all()


def test_strides_do_not_matter():
    rows, weight, upstream, offsets = make([20, 0, 30], 0, 8, 12)
    expected = run(rows, weight, upstream, offsets)
    others = run(
        rows.T.contiguous().T, weight.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        upstream.T.contiguous().T, offsets,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(expected, others, strict=True))


def test_second_derivatives():
    """The ops are each other's: d^2/dt^2 of <(W + t V)(r + t s), g> is 2 <V s, g>."""
    rows, weight, upstream, offsets = make([4, 0, 6], 0, 5, 7)
    rows_to, weight_to = torch.randn_like(rows), torch.randn_like(weight)
    t = torch.zeros(()).requires_grad_()
    y = OPS.grouped_product(rows + t * rows_to, weight + t * weight_to, offsets)
    (first,) = torch.autograd.grad((y * upstream).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    twice = 2 * (OPS.grouped_product(rows_to, weight_to, offsets) * upstream).sum()
    torch.testing.assert_close(second, twice)


def test_the_same_bits_twice():
    inputs = make([40, 100, 0, 9], 11, 24, 40)
    assert all(torch.equal(a, b) for a, b in zip(run(*inputs), run(*inputs), strict=True))


def test_opcheck():
    rows, weight, upstream, offsets = make([3, 0, 5], 2, 4, 6)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    rows.requires_grad_()
    for op, arguments in ((OPS.grouped_product, (rows, weight, offsets)),
                          (OPS.grouped_outer, (upstream, rows, offsets))):  # fmt: skip
        torch.library.opcheck(op.default, arguments, test_utils=checks)


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("rows must have two dimensions, got \\(6,\\)", {"rows": torch.zeros(6)}),
        (
            "weight must have shape \\(N, O, 4\\), got \\(2, 3, 5\\)",
            {"weight": torch.zeros(2, 3, 5)},
        ),
        ("weight must be torch.float32 on .*, as rows", {"weight": torch.zeros(2, 3, 4).half()}),
        ("rows must be float32 or of 16 bits, got .*float64", {"rows": torch.zeros(6, 4).double()}),
        ("offsets must be int64 of shape", {"offsets": torch.tensor([0, 1, 2, 3])}),
        ("offsets must be int64 of shape", {"offsets": torch.tensor([0, 1, 6]).int()}),
    ],
)
def test_what_memory_depends_on_is_checked(match, change, device):
    arguments = {"rows": torch.zeros(6, 4), "weight": torch.zeros(2, 3, 4),
                 "offsets": torch.tensor([0, 1, 6])}  # fmt: skip
    OPS.grouped_product(**arguments)
    moved = {name: tensor.to(device) for name, tensor in change.items()}
    with pytest.raises(ValueError, match=match):
        OPS.grouped_product(**(arguments | moved))


def test_there_is_a_kernel_here(device):
    assert grouped_product.why_not(torch.device(device)) is None
