"""Ways around the ordinary call of an op - modes, tracing, transforms - and what they leave behind.

A call remembers the taps of its arguments and goes to the dispatcher directly: neither may leak
from a mode into the calls after it, nor hide a call from whoever records calls.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from moge_bench import TopographicRouter, group_norm, route
from moge_bench.ops import extension, validation


def routed(logits):
    routing = route(logits, 2, group_size=2)
    return routing.weights, routing.experts, routing.importance, routing.group_loss, routing.load


def normed(logits):
    return group_norm(torch.softmax(logits, -1), group_size=2)


@pytest.fixture(autouse=True)
def _forget():
    validation._remembered_groups.cache_clear()


@pytest.mark.parametrize("function", [routed, normed])
def test_both_ways_to_call_an_op_are_one(function, monkeypatch):
    logits = torch.randn(5, 16, requires_grad=True)
    direct = function(logits)
    monkeypatch.setattr(extension, "find_op", lambda name: getattr(torch.ops.moge, name))
    torch.testing.assert_close(function(logits), direct, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("function", [routed, normed])
def test_a_recorded_graph_computes_the_same(function, mode):
    graph = make_fx(function, tracing_mode=mode)(torch.randn(5, 16))
    assert "moge" in graph.code
    other = torch.randn(5, 16)
    torch.testing.assert_close(graph(other), function(other), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, and warns of our checks
def test_a_jit_trace_computes_the_same():
    router = TopographicRouter(8, num_experts=16, top_k=2).requires_grad_(False)

    def weights_and_loss(x):
        routing = router(x)
        return routing.weights, routing.experts, routing.group_loss

    traced = torch.jit.trace(weights_and_loss, (torch.randn(5, 8),))
    other = torch.randn(5, 8)
    torch.testing.assert_close(traced(other), weights_and_loss(other), rtol=0, atol=0)


@pytest.mark.parametrize("function", [routed, normed])
def test_what_a_mode_saw_first_is_not_remembered_as_its_own(function):
    logits = torch.randn(5, 16)
    with FakeTensorMode() as mode:
        function(mode.from_tensor(logits))
        function(torch.randn(5, 16))
    with torch.inference_mode():
        function(logits)
    with pytest.raises(NotImplementedError, match=r"torch\.func"):  # refused, but taps were made
        torch.func.grad(lambda x: route(x, 2, group_size=2).group_loss)(logits)
    torch.func.vmap(lambda x: route(x, 2, group_size=2).weights)(torch.randn(3, 5, 16))
    logits.requires_grad_()
    outputs = function(logits)
    loss = outputs if function is normed else outputs[3]
    loss.backward()
    assert logits.grad.abs().sum() > 0


def test_what_is_remembered_is_told_apart_by_type():
    logits = torch.randn(5, 16)
    for _ in range(2):
        assert route(logits, 2, group_size=1).group_loss > 0
        with pytest.raises(ValueError, match="group_size must be an int >= 1, got True"):
            route(logits, 2, group_size=True)
        with pytest.raises(TypeError, match="sigma must be a positive number"):
            route(logits, 2, group_size=1, sigma=True)
