"""expert_ffn: the reference against a loop over tokens, the op against the reference."""

import math

import pytest
import torch
from expert_samples import make_inputs
from torch.nn import functional

from moge_bench.ops.expert_ffn import expert_ffn

ACTIVATIONS = ("gelu", "relu", "silu")


def loop_over_tokens(x, weights, experts, w_in, b_in, w_out, b_out, activation):
    """The equation, one choice after the other."""
    rows = []
    for token in range(x.shape[0]):
        y = torch.zeros(x.shape[1], dtype=x.dtype)
        for choice, expert in enumerate(experts[token].tolist()):
            if expert == -1:
                continue
            bias_in, bias_out = (None, None) if b_in is None else (b_in[expert], b_out[expert])
            inner = getattr(functional, activation)(
                functional.linear(x[token], w_in[expert], bias_in)
            )
            y = y + weights[token, choice] * functional.linear(inner, w_out[expert], bias_out)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_reference_is_the_equation(activation, bias):
    inputs = make_inputs(bias=bias, dtype=torch.float64)
    y = expert_ffn(*inputs, activation=activation, backend="reference")
    torch.testing.assert_close(y, loop_over_tokens(*inputs, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(activation, bias, backend):
    inputs = make_inputs(5, 3, 4, 3, bias=bias, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *tensors: expert_ffn(*tensors, activation=activation, backend=backend), inputs
    )


def run(inputs, activation="gelu", backend="extension", dtype=None):
    """Return y and every gradient of <y, fixed numbers>, the inputs cast to ``dtype`` first."""
    inputs = [
        tensor if tensor is None or not tensor.is_floating_point()
        else tensor.detach().to(dtype or tensor.dtype).requires_grad_()
        for tensor in inputs
    ]  # fmt: skip
    y = expert_ffn(*inputs, activation=activation, backend=backend)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    y.backward(upstream)
    return [y.detach(), *(t.grad for t in inputs if t is not None and t.is_floating_point())]


def assert_as_exact_as_the_reference(inputs, activation):
    """At most twice the reference's own error in that dtype, plus one ulp of the largest value.

    In float64 the reference is the oracle and its error 0: there, 16 ulp.
    """
    oracle = run(inputs, activation, "reference", torch.float64)
    theirs, ours = (run(inputs, activation, name) for name in ("reference", "extension"))
    for exact, reference, fused in zip(oracle, theirs, ours, strict=True):
        assert fused.dtype == reference.dtype
        if exact.numel() == 0:
            continue
        ulps = 16 if fused.dtype == torch.float64 else 1
        ulp = ulps * torch.finfo(fused.dtype).eps * exact.abs().max()
        bound = 2 * (reference.double() - exact).abs().max() + ulp
        assert (fused.double() - exact).abs().max() <= bound


def test_gelu_in_float64_is_right_far_into_its_tail():
    """x Phi(x) and Phi(x) + x phi(x), Phi(x) = erfc(-x / sqrt 2) / 2, through 1 x 1 matrices."""
    points = [i / 8 for i in range(-290, 80)] + [-1e-300, 0.0, 1e-300]  # Phi(-36.25) is 5e-288
    x = torch.tensor(points, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    experts = torch.zeros(x.shape, dtype=torch.int64)
    y = expert_ffn(x, torch.ones_like(x), experts, one, None, one, None, backend="extension")
    y.sum().backward()
    for p, value, slope in zip(
        points, y.flatten().tolist(), x.grad.flatten().tolist(), strict=True
    ):
        phi = math.erfc(-p * math.sqrt(0.5)) / 2
        # p sqrt(1/2) is rounded: a relative 1.1e-16 of it is p^2 times as much of erfc.
        allowed = (4 + p * p) * 2**-52
        assert abs(value - p * phi) <= allowed * abs(p * phi)
        density = math.exp(-p * p / 2) / math.sqrt(2 * math.pi)
        assert abs(slope - (phi + p * density)) <= allowed * (phi + abs(p) * density)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_extension_is_as_exact_as_the_reference(dtype, activation, bias, top_k):
    inputs = make_inputs(203, 33, 50, 7, top_k, bias=bias, dtype=dtype, seed=top_k)
    assert_as_exact_as_the_reference(inputs, activation)


@pytest.mark.parametrize(
    ("num_tokens", "hidden", "ffn", "num_experts", "top_k", "dropped"),
    [
        (0, 4, 4, 3, 2, 0.0),
        (1, 1, 1, 1, 1, 0.0),
        (5, 3, 2, 64, 3, 0.0),  # most experts are empty
        (40, 8, 8, 4, 2, 1.0),  # every choice is dropped
        (40, 8, 8, 4, 1, 0.5),  # tokens that no expert gets
        (1500, 16, 24, 1, 2, 0.0),  # one expert, several segments and blocks
        (300, 70, 20, 5, 3, 0.1),
    ],
)
def test_odd_shapes(num_tokens, hidden, ffn, num_experts, top_k, dropped):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make_inputs(
            num_tokens, hidden, ffn, num_experts, top_k, dropped=dropped, dtype=dtype
        )
        assert_as_exact_as_the_reference(inputs, "gelu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_tokens_to_one_expert(dtype):
    # 5000 rows: segments of 2048 rows at most, blocks of about 512 within, partial gradients added.
    inputs = make_inputs(5000, 8, 12, 3, 1, dropped=0.0, dtype=dtype)
    inputs[2] = torch.ones_like(inputs[2])
    assert_as_exact_as_the_reference(inputs, "silu")
    grad_w_in = run(inputs)[3]
    assert torch.equal(grad_w_in[0], torch.zeros(12, 8, dtype=dtype))
    assert grad_w_in[1].abs().min() > 0


def test_extremes_of_the_activations():
    # x reaches the activation as it is; y is act(x) and x's gradient its slope.
    x = torch.tensor([-1e30, -100.0, -13.0, -6.0, -1e-3, -0.0, 0.0, 1e-3, 3.0, 13.0, 100.0, 1e30])
    one = torch.ones(1, 1, 1)
    routing = torch.ones(len(x), 1), torch.zeros(len(x), 1, dtype=torch.int64)
    for activation in ACTIVATIONS:
        exact = x.double().requires_grad_()
        getattr(functional, activation)(exact).sum().backward()
        fused = x.clone().unsqueeze(1).requires_grad_()
        y = expert_ffn(
            fused, *routing, one, None, one, None, activation=activation, backend="extension"
        )
        y.sum().backward()
        expected = getattr(functional, activation)(exact).float()
        torch.testing.assert_close(y.flatten(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(fused.grad.flatten(), exact.grad.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_reaches_its_own_token_only(activation, backend):
    inputs = make_inputs(dropped=0.0)
    with torch.no_grad():
        inputs[0][4, 1] = torch.nan
    y = expert_ffn(*inputs, activation=activation, backend=backend)
    assert y[4].isnan().all()
    assert y[torch.arange(13) != 4].isfinite().all()


def test_not_contiguous():
    inputs = make_inputs(64, 12, 20, 5, 2)
    strided = [
        None if t is None else t.detach().clone().transpose(-1, -2).contiguous().transpose(-1, -2)
        for t in inputs
    ]
    for a, b in zip(run(inputs), run(strided), strict=True):
        assert torch.equal(a, b)


def test_independent_of_threads():
    inputs = make_inputs(3000, 40, 72, 6, 2)
    inputs[2][:2000] = 3  # one expert has several segments
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_nothing_is_kept_without_a_backward_pass():
    inputs = [None if t is None else t.detach() for t in make_inputs()]
    _, kept = torch.ops.moge.expert_ffn(*inputs, "gelu", False)
    assert kept.shape == (0, 5)
    y = expert_ffn(*inputs, backend="extension")
    assert not y.requires_grad
    torch.testing.assert_close(y, expert_ffn(*inputs, backend="reference"))


def test_frozen_parameters():
    inputs = make_inputs()
    expected = run(inputs)[1]
    frozen = [None if t is None else t.detach() for t in inputs]
    frozen[0].requires_grad_()
    y = expert_ffn(*frozen, backend="extension")
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(frozen[0].grad, expected)


def test_second_derivative_raises():
    inputs = make_inputs()
    y = expert_ffn(*inputs, backend="extension")
    (grad,) = torch.autograd.grad(y.sum(), inputs[0], create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "extension"])
def test_autocast_computes_in_bfloat16(backend):
    inputs = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = expert_ffn(*inputs, backend=backend)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert inputs[0].grad.dtype == inputs[3].grad.dtype == torch.float32
    expected = expert_ffn(*(t.bfloat16() if t.is_floating_point() else t for t in inputs),
                          backend=backend)  # fmt: skip
    # The weights stay in float32 under autocast, hence not equal but close.
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


def test_opcheck():
    for bias in (True, False):
        inputs = make_inputs(bias=bias)
        torch.library.opcheck(torch.ops.moge.expert_ffn.default, (*inputs, "gelu", True))
        detached = [None if t is None else t.detach() for t in inputs]
        y, activations = torch.ops.moge.expert_ffn(*detached, "gelu", True)
        x, weights, experts, w_in, _, w_out, b_out = detached
        torch.library.opcheck(
            torch.ops.moge.expert_ffn_backward.default,
            (torch.randn(y.shape), x, weights, experts, w_in, w_out, b_out, activations, "gelu"),
        )


def test_compiled_with_any_number_of_tokens():
    compiled = torch.compile(
        lambda *t: expert_ffn(*t, activation="relu", backend="extension"), fullgraph=True
    )
    for num_tokens in (20, 33, 600):
        inputs = make_inputs(num_tokens)
        y = compiled(*inputs)
        y.sum().backward()
        expected = [None if t is None else t.detach().requires_grad_(t.is_floating_point())
                    for t in inputs]  # fmt: skip
        z = expert_ffn(*expected, activation="relu", backend="extension")
        z.sum().backward()
        assert torch.equal(y, z)
        for a, b in zip(inputs, expected, strict=True):
            assert a is None or a.grad is None or torch.equal(a.grad, b.grad)
