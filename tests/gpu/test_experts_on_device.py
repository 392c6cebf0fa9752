"""dispatch, combine and the expert FFN built of them, against hand arithmetic and the reference."""

import pytest
import torch

from moge_bench.ops import grouped_ffn, reference_experts
from moge_bench.ops.grouped_ffn import ACTIVATION_CODES

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_inputs(num_tokens, hidden, ffn, num_experts, top_k, *, bias=True, dropped=0.2,
                dtype=torch.float32):  # fmt: skip
    """The seven tensors of expert_ffn in ``dtype``, weights float32, some choices dropped."""
    experts = torch.randint(0, num_experts, (num_tokens, top_k))
    experts[torch.rand(num_tokens, top_k) < dropped] = -1
    w_in, w_out = torch.randn(num_experts, ffn, hidden), torch.randn(num_experts, hidden, ffn)
    biases = (torch.randn(num_experts, ffn), torch.randn(num_experts, hidden))
    b_in, b_out = biases if bias else (None, None)
    tensors = [torch.randn(num_tokens, hidden), w_in, b_in, w_out, b_out]
    x, w_in, b_in, w_out, b_out = (None if t is None else t.to(dtype) for t in tensors)
    return [x, torch.rand(num_tokens, top_k), experts, w_in, b_in, w_out, b_out]


def run(function, inputs, activation="gelu", dtype=None):
    """Return y and every gradient of <y, fixed numbers>, the floats cast to ``dtype`` first."""
    inputs = [
        t if t is None or not t.is_floating_point()
        else t.detach().to(dtype or t.dtype).requires_grad_()
        for t in inputs
    ]  # fmt: skip
    y = function(*inputs, activation)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(upstream.to(y.dtype))
    return [y.detach(), *(t.grad for t in inputs if t is not None and t.is_floating_point())]


def test_dispatch_and_combine_by_hand():
    # Experts 2, 0 | 0, dropped | 2, 1: rows sorted by expert, in token order within one.
    x = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    experts = torch.tensor([[2, 0], [0, -1], [2, 1]])
    rows, offsets, slots, positions, bad_row = torch.ops.moge.dispatch(x, experts, 3)
    assert rows[:, 0].tolist() == [1, 2, 3, 1, 3, 0]
    assert offsets.tolist() == [0, 2, 3, 5]
    assert slots.tolist() == [1, 2, 5, 0, 4, -1]
    assert positions.tolist() == [[3, 0], [1, -1], [4, 2]] and bad_row.item() == -1
    weights = torch.tensor([[0.5, 0.25], [1.0, 9.0], [2.0, 1.0]])
    y = torch.ops.moge.combine(rows, weights, slots, positions)
    # y = (w0 + w1) x for both kept; the dropped choice adds nothing: 0.75, 1 and 3 times x.
    assert torch.equal(y, x * torch.tensor([[0.75], [1.0], [3.0]]))
    grad_rows, grad_weights = torch.ops.moge.combine_backward(
        torch.ones(3, 2), rows, weights, slots, positions
    )
    assert grad_rows[:, 0].tolist() == [0.25, 1, 1, 0.5, 2, 0]
    assert grad_weights.tolist() == [[11, 11], [22, 0], [33, 33]]


def test_bias_and_activation_by_hand():
    # Expert 0 has row 0, expert 1 none, expert 2 rows 1 and 2; row 3 is of a dropped choice.
    rows = torch.tensor([[1.0, -1.0], [2.0, -4.0], [-3.0, 5.0], [torch.nan, torch.nan]])
    bias, offsets = torch.tensor([[0.5, 0.5], [9.0, 9.0], [1.0, 2.0]]), torch.tensor([0, 1, 1, 3])
    relu, none = ACTIVATION_CODES["relu"], ACTIVATION_CODES["none"]
    y = torch.ops.moge.bias_activation(rows, bias, offsets, relu)
    assert y.tolist() == [[1.5, 0], [3, 0], [0, 7], [0, 0]]
    grad = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [torch.nan, torch.nan]])
    grad_rows, grad_bias = torch.ops.moge.bias_activation_backward(grad, rows, bias, offsets, relu)
    # The slope is 1 where y is above 0.
    assert grad_rows.tolist() == [[1, 0], [3, 0], [0, 6], [0, 0]]
    assert grad_bias.tolist() == [[1, 0], [0, 0], [3, 6]]
    empty, sums = torch.ops.moge.bias_activation_backward(grad, None, None, offsets, none)
    assert empty.shape == (0, 2) and sums.tolist() == [[1, 2], [0, 0], [8, 10]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_without_a_token_have_gradients_of_zero(device, dtype):
    """After the allocator held NaN, so that what nobody writes would show."""
    poison = [torch.full((2**20,), torch.nan, device=device) for _ in range(8)]
    inputs = make_inputs(300, 64, 96, 8, 2, dtype=dtype)
    busy = torch.tensor([0, 1, 2, 4, 5, 6, -1])
    inputs[2] = busy[torch.randint(0, 7, (300, 2))]
    del poison
    y, *grads = run(grouped_ffn.expert_ffn, inputs)
    assert all(value.isfinite().all() for value in (y, *grads))
    for grad in grads[2:]:  # of w_in, b_in, w_out, b_out
        assert (grad[[3, 7]] == 0).all()
        assert all((grad[e] != 0).any() for e in busy[:-1].tolist())


def test_an_index_that_no_expert_has():
    """It is named, or counts as dropped; the process, and its CUDA context, go on."""
    inputs = make_inputs(60, 16, 16, 4, 2, dropped=0.0)
    inputs[2][41, 0], inputs[2][20, 1], inputs[2][59, 1] = 4, -2, 2**40
    with pytest.raises(ValueError, match=r"experts must hold -1 .* 0 to 3, got .*-2\] in row 20"):
        grouped_ffn.expert_ffn(*inputs, "gelu")
    unchecked = grouped_ffn.expert_ffn(*inputs, "gelu", check_experts=False)
    inputs[2] = inputs[2].masked_fill((inputs[2] < 0) | (inputs[2] > 3), -1)
    assert torch.equal(unchecked, grouped_ffn.expert_ffn(*inputs, "gelu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize(("hidden", "ffn"), [(32, 48), (33, 50)])
def test_as_exact_as_the_reference(dtype, bias, activation, hidden, ffn):
    """Grouped products, or one an expert where the sizes do not fit them; see the docstring."""
    inputs = make_inputs(203, hidden, ffn, 7, 2, bias=bias, dtype=dtype)
    exact = run(reference_experts.expert_ffn, inputs, activation, torch.float64)
    theirs = run(reference_experts.expert_ffn, inputs, activation)
    ours = run(grouped_ffn.expert_ffn, inputs, activation)
    if activation == "relu" and dtype != torch.float32:
        # Its slope jumps at 0, and one rounding more may fall on the other side: y alone.
        exact, theirs, ours = exact[:1], theirs[:1], ours[:1]
    for truth, plain, fused in zip(exact, theirs, ours, strict=True):
        assert fused.dtype == plain.dtype
        unit = torch.finfo(fused.dtype).eps * truth.abs().max()
        # The bias is added after the product is rounded, not before: one rounding more.
        bound = 2 * (plain.double() - truth).abs().max() + 2 * unit
        assert (fused.double() - truth).abs().max() <= bound


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "dropped"),
    [(0, 3, 2, 0.0), (1, 1, 1, 0.0), (5, 64, 3, 0.0), (40, 4, 2, 1.0), (40, 4, 1, 0.5),
     (700, 2, 2, 0.1)],
)  # fmt: skip
@pytest.mark.parametrize("hidden", [16, 7])
def test_odd_shapes(num_tokens, num_experts, top_k, dropped, hidden):
    inputs = make_inputs(num_tokens, hidden, 8, num_experts, top_k, dropped=dropped)
    for a, b in zip(
        run(grouped_ffn.expert_ffn, inputs), run(reference_experts.expert_ffn, inputs), strict=True
    ):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_tokens", "dropped"), [(0, 0.0), (40, 1.0)])
def test_no_row_in_bfloat16(num_tokens, dropped):
    """A rank of divided experts may get no token; torch's grouped_mm then has no row."""
    inputs = make_inputs(num_tokens, 16, 8, 4, 2, dropped=dropped, dtype=torch.bfloat16)
    for a, b in zip(
        run(grouped_ffn.expert_ffn, inputs), run(reference_experts.expert_ffn, inputs), strict=True
    ):
        assert a.shape == b.shape and torch.equal(a, b) and torch.count_nonzero(a) == 0


def test_the_same_input_gives_the_same_bits():
    inputs = make_inputs(300, 16, 24, 5, 2)
    first, second = (run(grouped_ffn.expert_ffn, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_opcheck():
    x, weights, experts, *_ = make_inputs(20, 8, 8, 4, 2)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    x.requires_grad_()
    torch.library.opcheck(torch.ops.moge.dispatch.default, (x, experts, 4), test_utils=checks)
    rows, offsets, slots, positions, _ = torch.ops.moge.dispatch(x.detach(), experts, 4)
    bias = torch.randn(4, 8).requires_grad_()
    for code in ACTIVATION_CODES.values():
        torch.library.opcheck(
            torch.ops.moge.bias_activation.default,
            (rows.clone().requires_grad_(), bias, offsets, code), test_utils=checks,
        )  # fmt: skip
        given = (rows, bias.detach()) if code else (None, None)
        torch.library.opcheck(
            torch.ops.moge.bias_activation_backward.default,
            (torch.randn(40, 8), *given, offsets, code), test_utils=checks,
        )  # fmt: skip
    for given in (weights, None):
        torch.library.opcheck(
            torch.ops.moge.combine.default,
            (rows.clone().requires_grad_(), given, slots, positions), test_utils=checks,
        )  # fmt: skip
    torch.library.opcheck(
        torch.ops.moge.combine_backward.default,
        (torch.randn(20, 8), rows, weights, slots, positions), test_utils=checks,
    )  # fmt: skip


def test_a_second_derivative_raises():
    inputs = make_inputs(9, 8, 8, 3, 2)
    inputs[0].requires_grad_()
    y = grouped_ffn.expert_ffn(*inputs, "silu")
    (grad,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("x must have two dimensions", {"x": torch.zeros(4)}),
        ("experts must have shape", {"experts": torch.zeros(3, 2).long()}),
        ("experts must be Long, got Float", {"experts": torch.zeros(4, 2)}),
        ("num_experts must be from 1 to 1024, got 0", {"num_experts": 0}),
    ],
)
def test_dispatch_checks_what_memory_depends_on(device, match, change):
    arguments = {"x": torch.zeros(4, 8), "experts": torch.zeros(4, 2).long(), "num_experts": 3}
    torch.ops.moge.dispatch(**arguments)
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises((ValueError, TypeError, RuntimeError), match=match):
        torch.ops.moge.dispatch(**(arguments | moved))


def test_combine_checks_what_memory_depends_on():
    x, weights, experts, *_ = make_inputs(6, 8, 8, 4, 2)
    rows, _, slots, positions, _ = torch.ops.moge.dispatch(x, experts, 4)
    for bad, match in (
        ((rows[:5], weights, slots, positions), "rows must have shape"),
        ((rows, weights[:5], slots, positions), "weights must have shape"),
        ((rows, weights.double(), slots, positions), "weights must be Float, got Double"),
        ((rows, weights, slots[:5], positions), "slots must have shape"),
        ((rows, weights, slots, positions.long()), "positions must be Int, got Long"),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=match):
            torch.ops.moge.combine(*bad)


def test_bias_activation_checks_what_memory_depends_on():
    rows, bias, offsets = torch.zeros(6, 8), torch.zeros(3, 8), torch.tensor([0, 1, 1, 6])
    op, backward = torch.ops.moge.bias_activation, torch.ops.moge.bias_activation_backward
    for bad, match in (
        ((rows[0], bias, offsets, 1), "rows must have two dimensions"),
        ((rows, bias[:2], offsets, 1), "bias must have shape"),
        ((rows, bias.double(), offsets, 1), "bias must be Float, got Double"),
        ((rows, bias, offsets[:1], 1), "offsets must have shape"),
        ((rows, bias, offsets.int(), 1), "offsets must be Long, got Int"),
        ((rows, bias, offsets, 4), "activation must be 0 .*, got 4"),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=match):
            op(*bad)
    with pytest.raises((ValueError, RuntimeError), match="rows and bias must be given"):
        backward(rows, None, None, offsets, 1)
