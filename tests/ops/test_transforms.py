"""Derivatives beyond plain backward: right, or an error that names backend='reference'.

Each op under both forms of activation checkpointing, in forward mode, under torch.func, batched
and differentiated twice. The reference's values are held against central differences.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from transform_cases import ON_A_GPU, PUBLIC, WEIGHTS, Case, cpu_kernels, draw, op_calls

REFUSED = "no .*derivative.*backend='reference'"
FUSED = [*PUBLIC, ON_A_GPU]

public = pytest.mark.parametrize("case", PUBLIC, ids=lambda case: case.name)
fused = pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    with cpu_kernels():
        yield


def value(case: Case, backend: str):
    """The case as a scalar function: its outputs times fixed numbers."""
    factors = draw(*case.function(case.point, backend).shape, 1)[..., 0]

    def function(tensor):
        return (case.function(tensor, backend) * factors).sum()

    return function


def gradient(function, point):
    point = point.detach().clone().requires_grad_()
    function(point).backward()  # not autograd.grad, which reentrant checkpoints cannot do
    return point.grad


def difference(function, point, direction):
    """(f(p + s v) - f(p - s v)) / 2 s, s = 1e-6: wrong by some 1e-9 in float64."""
    step = 1e-6 * direction
    return (function(point + step) - function(point - step)) / 2e-6


@public
def test_the_reference_is_the_slope(case):
    function, direction = value(case, "reference"), draw(1, *case.point.shape)[0]
    slope = difference(function, case.point, direction)
    torch.testing.assert_close(
        (gradient(function, case.point) * direction).sum(), slope, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("use_reentrant", [False, True])
@fused
def test_the_same_gradients_under_a_checkpoint(case, use_reentrant, backend):
    function = value(case, backend)

    def recomputed(tensor):
        return checkpoint(lambda t: function(2 * t), tensor, use_reentrant=use_reentrant)

    expected = gradient(lambda tensor: function(2 * tensor), case.point)
    assert torch.equal(gradient(recomputed, case.point), expected)
    assert expected.abs().sum() > 0


@public
def test_forward_mode_of_the_reference(case):
    function, direction = value(case, "reference"), draw(1, *case.point.shape)[0]
    slope = difference(function, case.point, direction)
    _, tangent = torch.func.jvp(function, (case.point,), (direction,))
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("requires_grad", [False, True])
@fused
def test_forward_mode_is_refused(case, requires_grad):
    function, point = value(case, "extension"), case.point.clone().requires_grad_(requires_grad)
    with pytest.raises(NotImplementedError, match=REFUSED):
        torch.func.jvp(function, (point,), (torch.ones_like(point),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=REFUSED):
        function(forward_ad.make_dual(point, torch.ones_like(point)))
    with pytest.raises(NotImplementedError, match=REFUSED):
        torch.func.jacfwd(function)(point)


TRANSFORMS = {
    "grad": torch.func.grad,
    "vjp": lambda f: lambda x: torch.func.vjp(f, x)[1](torch.ones((), dtype=x.dtype))[0],
    "jacrev": torch.func.jacrev,
    "vmap of grad": lambda f: lambda x: torch.func.vmap(torch.func.grad(f))(x[None])[0],
}


@pytest.mark.parametrize("name", TRANSFORMS)
@public
def test_torch_func_of_the_reference(case, name):
    function = value(case, "reference")
    result = TRANSFORMS[name](function)(case.point)
    torch.testing.assert_close(result, gradient(function, case.point))


@pytest.mark.parametrize("name", TRANSFORMS)
@fused
def test_torch_func_is_refused(case, name):
    with pytest.raises(NotImplementedError, match=REFUSED):
        TRANSFORMS[name](value(case, "extension"))(case.point)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("in_dim", [0, 1, 2])
@public
def test_vmap_is_a_call_a_slice(case, in_dim, backend):
    points = torch.stack([case.point, case.point.flip(0), case.point / 2], dim=in_dim)
    points.requires_grad_()
    batched = torch.func.vmap(lambda t: case.function(t, backend), in_dims=in_dim)(points)
    slices = torch.stack([case.function(t, backend) for t in points.unbind(in_dim)])
    torch.testing.assert_close(batched, slices)
    upstream = draw(*slices.shape)
    grads = (torch.autograd.grad(outputs, points, upstream)[0] for outputs in (batched, slices))
    torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@public
def test_batched_gradients(case):
    jacobians = [
        torch.autograd.functional.jacobian(
            lambda t, name=backend: case.function(t, name), case.point, vectorize=vectorize
        )
        for backend, vectorize in (("reference", False), ("extension", True))
    ]
    torch.testing.assert_close(*jacobians)


@public
def test_second_derivatives_of_the_reference(case):
    function, direction = value(case, "reference"), draw(1, *case.point.shape)[0]
    slope = difference(lambda point: gradient(function, point), case.point, direction)
    product = torch.autograd.functional.vhp(function, case.point, direction)[1]
    torch.testing.assert_close(product, slope, rtol=1e-5, atol=1e-7)


@fused
def test_second_derivatives_are_refused(case):
    function, point = value(case, "extension"), case.point.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(point), point, create_graph=True)
    with pytest.raises(NotImplementedError, match=REFUSED):
        grad.sum().backward()


CALLS = op_calls()
each_op = pytest.mark.parametrize(
    ("name", "place", "arguments"), CALLS, ids=[f"{name}-{place}" for name, place, _ in CALLS]
)


def test_every_op_is_among_the_calls():
    ops = {name.removeprefix("moge::") for name in torch._C._dispatch_get_all_op_names()
           if name.startswith("moge::") and "count_load" not in name}  # fmt: skip
    assert ops == {name for name, _, _ in CALLS}


def called(name, place, arguments):
    """The op as a function of the argument at ``place``; every differentiable output."""

    def function(tensor):
        outputs = getattr(torch.ops.moge, name)(*arguments[:place], tensor, *arguments[place + 1 :])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [output for output in outputs if output.is_floating_point()]

    return function


@each_op
def test_no_op_loses_a_tangent(name, place, arguments):
    function, point = called(name, place, arguments), arguments[place]
    with pytest.raises(NotImplementedError, match=rf"^moge::{name}.*{REFUSED}"):
        torch.func.jvp(function, (point,), (torch.ones_like(point),))
    with pytest.raises(NotImplementedError, match=rf"^moge::{name}.*{REFUSED}"):
        torch.func.grad(lambda tensor: function(tensor)[0].sum())(point)


@each_op
def test_no_backward_op_has_a_derivative(name, place, arguments):
    point = arguments[place].clone().requires_grad_()
    outputs = called(name, place, arguments)(point)
    differentiated = [output for output in outputs if output.requires_grad]
    forward = ("route", "group_norm", "expert_ffn", "dispatch", "bias_activation",
               "grouped_product", "grouped_outer")  # fmt: skip
    if name in forward or arguments[1] is WEIGHTS:
        assert differentiated
        return
    for output in outputs:
        with pytest.raises(NotImplementedError, match=rf"^moge::{name}.*{REFUSED}"):
            torch.autograd.grad(output.sum(), point, retain_graph=True)


@pytest.mark.parametrize("name", ["route", "group_norm"])
def test_no_op_is_differentiated_by_its_taps(name):
    arguments = next(arguments for op, _, arguments in CALLS if op == name)
    place = next(i for i, a in enumerate(arguments) if torch.is_tensor(a) and a.dim() == 1)
    taps = arguments[place].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="no derivative by taps"):
        called(name, place, arguments)(taps)
    with pytest.raises(NotImplementedError, match="no derivative by taps"):
        torch.func.jvp(called(name, place, arguments), (taps.detach(),), (taps.detach(),))
