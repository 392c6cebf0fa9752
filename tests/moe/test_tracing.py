"""The layer under torch.compile, torch.export, fake and meta tensors, deterministic mode."""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from moge_bench import MoEAux, MoELayer, Routing, SigmaSchedule
from moge_bench.routing.balance import BALANCE_LOSSES

EVERYTHING = {
    "group_weight": 1.0, "balance": "vmoe", "z_loss_weight": 0.1, "noise": True,
    "bias_update_rate": 0.1, "capacity_factor": 4 / 3, "batch_priority": True,
}  # fmt: skip


def make(**settings):
    torch.manual_seed(0)
    return MoELayer(8, 12, 16, 2, **settings)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def objective(layer, x, mask=None):
    torch.manual_seed(1)  # the gate noise
    y, aux = layer(x, mask)
    return y.square().sum() + aux.loss


@pytest.mark.parametrize("balance", sorted(BALANCE_LOSSES))
def test_compiles_without_a_graph_break(balance):
    counter = CompileCounterWithBackend("aot_eager")
    layer, x = make(balance=balance, group_weight=1.0), torch.randn(20, 8)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    torch.testing.assert_close(objective(compiled, x), objective(layer, x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("masked", [False, True])
def test_one_graph_serves_every_number_of_tokens(masked):
    counter = CompileCounterWithBackend("aot_eager")
    layer = make(**EVERYTHING, nonfinite="propagate").eval()
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    frames = []
    for num_tokens in (64, 100, 7):
        x = torch.randn(num_tokens, 8)
        mask = torch.rand(num_tokens) > 0.3 if masked else None
        torch.testing.assert_close(objective(compiled, x, mask), objective(layer, x, mask))
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1]  # nothing is compiled again


def test_compiled_gradients_and_counts_are_the_layers():
    layer, x = make(**{**EVERYTHING, "noise": False}), torch.randn(20, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results, counts = [], []
    for call in (layer, compiled):
        results.append(torch.autograd.grad(objective(call, x), list(layer.parameters())))
        counts.append(layer.router.take_load_counts())
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(*counts)


def test_a_new_sigma_every_step_is_one_graph():
    counter = CompileCounterWithBackend("eager")
    layer, x = make(), torch.randn(20, 8)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    schedule = SigmaSchedule(10.0, 1.0, 0.2, total_steps=20)
    for step in range(20):
        schedule.apply(layer, step)
        assert torch.equal(compiled(x)[1].losses["group"], layer(x)[1].losses["group"])
    assert counter.frame_count == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("settings", [{}, EVERYTHING])
def test_exported_layer_returns_what_the_layer_does(training, settings):
    layer, x = make(**settings).train(training), torch.randn(20, 8)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    program = torch.export.export(
        layer, (torch.randn(9, 8), torch.ones(9, dtype=torch.bool)),
        dynamic_shapes={"x": {0: tokens}, "mask": {0: tokens}},
    )  # fmt: skip
    mask = torch.arange(20) % 3 > 0
    y, aux = program.module()(x, mask)
    assert isinstance(aux, MoEAux)
    assert isinstance(aux.routing, Routing)
    if not (training and settings):  # else the noise differs
        expected_y, expected = layer(x, mask)
        torch.testing.assert_close(y, expected_y)
        torch.testing.assert_close(aux.loss, expected.loss)
        assert torch.equal(aux.routing.first_load, expected.routing.first_load)


def test_exported_layer_can_be_saved():
    layer, x = make().eval(), torch.randn(9, 8)
    stream = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,)), stream)
    stream.seek(0)
    y, aux = torch.export.load(stream).module()(x)
    torch.testing.assert_close(y, layer(x)[0])
    assert aux.experts_backend == "extension"


@pytest.mark.parametrize("settings", [{}, EVERYTHING])
def test_fake_tensors_go_through(settings):
    with FakeTensorMode():
        layer, x = make(**settings), torch.randn(2, 9, 8)
        y, aux = layer(x, torch.ones(2, 9, dtype=torch.bool))
    assert y.shape == (2, 9, 8)
    assert aux.loss.shape == ()


@pytest.mark.parametrize("settings", [{}, EVERYTHING])
def test_meta_tensors_go_through(settings):
    layer = make(**settings).to("meta")
    y, aux = layer(torch.randn(2, 9, 8, device="meta"))
    assert y.shape == (2, 9, 8)
    assert y.is_meta
    assert aux.routing.first_load.shape == (16,)


def test_deterministic_mode():
    layer, x = make(**EVERYTHING), torch.randn(20, 8)
    expected = objective(layer, x)
    torch.use_deterministic_algorithms(True)
    try:
        loss = objective(layer, x)
        loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(loss, expected)
