"""Every op where there are no values to read: meta, FakeTensorMode, graphs for values to come."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from transform_cases import EXPERTS, ON_A_GPU, PARAMETERS, PUBLIC, WEIGHTS, X, cpu_kernels

from moge_bench import group_norm, route
from moge_bench.ops import grouped_ffn
from moge_bench.ops.expert_ffn import expert_ffn
from moge_bench.ops.reference_experts import masked_linear

public = pytest.mark.parametrize("case", PUBLIC, ids=lambda case: case.name)


def routed(logits, backend):
    routing = route(logits, 2, group_size=2, backend=backend)
    return routing.weights, routing.experts, routing.importance, routing.group_loss, routing.load


def routed_wide(logits, bias, mask, backend):
    routing = route(
        logits, 4, group_size=2, score_function="sigmoid", bias=bias, mask=mask, num_groups=4,
        top_groups=2, scale=2.5, unit_energy=True, backend=backend,
    )  # fmt: skip
    return routing.weights, routing.experts, routing.importance, routing.group_loss, routing.load


def normed(logits, backend):
    return (group_norm(torch.softmax(logits, -1), group_size=2, backend=backend),)


def fed(x, experts, backend):
    return (expert_ffn(x, WEIGHTS, experts, *PARAMETERS.values(), backend=backend),)


BIAS, MASK = torch.randn(16), torch.tensor([True, True, True, False, True])
FUNCTIONS = [
    (routed, (torch.randn(5, 16),)), (routed_wide, (torch.randn(5, 16), BIAS, MASK)),
    (normed, (torch.randn(5, 16),)), (fed, (X, EXPERTS)),
]  # fmt: skip
each_function = pytest.mark.parametrize(
    ("function", "inputs"), FUNCTIONS, ids=[f.__name__ for f, _ in FUNCTIONS]
)


def shapes(outputs):
    return [(output.shape, output.dtype) for output in outputs]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_function
def test_meta_tensors_give_shapes(function, inputs, dtype, backend, monkeypatch):
    def in_dtype(tensor, device="cpu"):
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    def use_parameters(device):
        moved = {name: in_dtype(tensor, device) for name, tensor in PARAMETERS.items()}
        monkeypatch.setitem(globals(), "PARAMETERS", moved)
        monkeypatch.setitem(globals(), "WEIGHTS", in_dtype(WEIGHTS, device))

    use_parameters("cpu")
    expected = function(*map(in_dtype, inputs), backend)
    use_parameters("meta")
    on_meta = [in_dtype(tensor, "meta") for tensor in inputs]
    outputs = function(on_meta[0].requires_grad_(), *on_meta[1:], backend)
    assert all(output.is_meta for output in outputs) and shapes(outputs) == shapes(expected)
    outputs[0].sum().backward()
    assert on_meta[0].grad.shape == inputs[0].shape


@pytest.mark.parametrize("allow_non_fake_inputs", [False, True])
@each_function
def test_fake_tensors_give_shapes(function, inputs, allow_non_fake_inputs, backend, monkeypatch):
    mode = FakeTensorMode(allow_non_fake_inputs=allow_non_fake_inputs)
    fakes = [mode.from_tensor(t.clone().requires_grad_(t.is_floating_point())) for t in inputs]
    with mode:
        if not allow_non_fake_inputs:
            parameters = {name: mode.from_tensor(t) for name, t in PARAMETERS.items()}
            monkeypatch.setitem(globals(), "PARAMETERS", parameters)
            monkeypatch.setitem(globals(), "WEIGHTS", mode.from_tensor(WEIGHTS))
        outputs = function(*fakes, backend)
        outputs[0].sum().backward()
        assert fakes[0].grad.shape == inputs[0].shape
    monkeypatch.undo()
    assert shapes(outputs) == shapes(function(*inputs, backend))


# Inputs of other values and, for the experts, another routing than the graph was made with.
OTHER = {
    routed: (torch.randn(5, 16),),
    routed_wide: (torch.randn(5, 16), BIAS.flip(0), MASK.flip(0)),
    normed: (torch.randn(5, 16),),
    fed: (X + 1, EXPERTS.flip(0)),
}


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@each_function
def test_a_recorded_graph_is_for_every_value(function, inputs, mode, backend):
    graph = make_fx(
        lambda *tensors: function(*tensors, backend),
        tracing_mode=mode, _allow_non_fake_inputs=True,
    )(*inputs)  # fmt: skip
    torch.testing.assert_close(graph(*OTHER[function]), function(*OTHER[function], backend))


@pytest.mark.parametrize("strict", [False, True])
@each_function
def test_an_exported_program_is_for_every_value(function, inputs, strict, backend):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors, backend)

    program = torch.export.export(Module(), inputs, strict=strict)
    torch.testing.assert_close(
        program.module()(*OTHER[function]), function(*OTHER[function], backend)
    )


@each_function
def test_an_exported_program_refuses_what_the_call_refuses(function, inputs, backend):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors, backend)

    module = torch.export.export(Module(), inputs).module()
    broken = [t.clone() for t in inputs]
    if function is fed:
        broken[1][2, 1] = 4
    else:
        broken[0][2, 1] = torch.nan
    with pytest.raises((ValueError, RuntimeError), match=r"must be finite|experts must hold"):
        module(*broken)


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, and warns of our checks
@pytest.mark.parametrize("function", [routed, normed])
def test_a_jit_trace_with_the_default_map(function, backend):
    traced = torch.jit.trace(lambda logits: function(logits, backend), (torch.randn(5, 16),))
    other = torch.randn(5, 16)
    torch.testing.assert_close(traced(other), function(other, backend))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_the_routing(backend):
    choices = torch.stack([EXPERTS, EXPERTS.flip(0)])
    batched = torch.func.vmap(lambda experts: fed(X, experts, backend)[0])(choices)
    slices = torch.stack([fed(X, experts, "reference")[0] for experts in choices])
    torch.testing.assert_close(batched, slices)
    with pytest.raises(ValueError, match=r"experts must hold .* got 4"):
        torch.func.vmap(lambda experts: fed(X, experts, backend)[0])(choices + 1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("function", [routed, normed])
def test_vmap_refuses_what_a_call_refuses(function, backend):
    logits = torch.randn(3, 5, 16)
    logits[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"must be finite, got NaN or inf.*'propagate'"):
        torch.func.vmap(lambda slice_: function(slice_, backend))(logits)


def test_masked_rows_reach_no_other_expert():
    # Row 1 is NaN and of expert 1: expert 0 sees zeros for it, in its gradient too.
    rows = torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [3.0, 4.0]])
    weights = torch.tensor([[[10.0, 1.0]], [[1.0, 1.0]]], requires_grad=True)
    outputs = masked_linear(rows, torch.tensor([0, 1, -1]), weights.unbind(), (None, None))
    assert outputs[0].item() == 12 and outputs[1].isnan() and outputs[2].item() == 0
    outputs.sum().backward()
    assert weights.grad[0].tolist() == [[1.0, 2.0]] and weights.grad[1, 0, 0].isnan()


def test_the_experts_of_a_gpu_by_masks(monkeypatch):
    with cpu_kernels(products=False):
        expected = ON_A_GPU.function(X, "extension")
        monkeypatch.setattr(grouped_ffn, "readable", lambda tensor: False)
        torch.testing.assert_close(ON_A_GPU.function(X, "extension"), expected)
