import pytest
import torch

from moge_bench.moe.residual import AdamResidual, MomentumResidual, Residual


def run(residual, outputs, x):
    """Thread the stream through layers whose outputs are given; return it after every layer."""
    stream = []
    for layer, output in enumerate(outputs):
        x = x + residual.increment(layer, output)
        stream.append(x)
    return stream


@pytest.fixture
def outputs():
    torch.manual_seed(0)
    return [torch.randn(2, 3, dtype=torch.float64) for _ in range(4)]


def test_plain_adds_the_output(outputs):
    x = torch.zeros(2, 3, dtype=torch.float64)
    torch.testing.assert_close(run(Residual(), outputs, x)[-1], sum(outputs))


def test_momentum_is_the_recurrence_over_layers(outputs):
    mu, gamma1, gamma2 = 0.7, 0.8, 1.5
    x = p = torch.zeros(2, 3, dtype=torch.float64)
    expected = []
    for f in outputs:
        p = mu * p + gamma2 * f
        x = x + gamma1 * p
        expected.append(x)
    residual = MomentumResidual(4, mu=mu, gamma1=gamma1, gamma2=gamma2)
    got = run(residual, outputs, torch.zeros(2, 3, dtype=torch.float64))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_momentum_by_hand():
    residual = MomentumResidual(3, mu=0.5, gamma1=2.0, gamma2=1.0)
    outputs = [torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([3.0])]
    # p = 1, 0.5, 3.25; x = 2, 3, 9.5.
    assert [float(x) for x in run(residual, outputs, torch.zeros(1))] == [2.0, 3.0, 9.5]


def test_adam_in_layer_0_and_momentum_after(outputs):
    mu, gamma1, gamma2, beta1, beta2 = 0.7, 1.0, 0.9, 0.9, 0.999
    first = (1 - beta1) * outputs[0]
    second = (1 - beta2) * outputs[0] ** 2
    p = gamma2 * outputs[0]
    x = gamma1 * first / torch.sqrt(second + 1e-8)
    expected = [x]
    for f in outputs[1:]:
        p = mu * p + gamma2 * f
        x = x + gamma1 * p
        expected.append(x)
    residual = AdamResidual(4, mu=mu, gamma1=gamma1, gamma2=gamma2, beta1=beta1, beta2=beta2)
    got = run(residual, outputs, torch.zeros(2, 3, dtype=torch.float64))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_nothing_is_carried_to_the_next_forward_pass(kind, outputs):
    settings = {"mu": 0.7, "gamma1": 1.0, "gamma2": 1.0}
    if kind == "momentum":
        residual = MomentumResidual(4, **settings)
    else:
        residual = AdamResidual(4, **settings, beta1=0.9, beta2=0.999)
    zero = torch.zeros(2, 3, dtype=torch.float64)
    first, second = run(residual, outputs, zero), run(residual, outputs, zero)
    assert torch.equal(first[-1], second[-1])
    assert residual._momentum is None


def test_gradient_reaches_every_layer_through_the_momentum(outputs):
    leaves = [f.clone().requires_grad_() for f in outputs]
    residual = MomentumResidual(4, mu=0.5, gamma1=1.0, gamma2=1.0)
    run(residual, leaves, torch.zeros(2, 3, dtype=torch.float64))[-1].sum().backward()
    # d x_last / d f_l = 1 + mu + ... + mu^(3 - l): 1.875, 1.75, 1.5, 1.
    assert [float(f.grad[0, 0]) for f in leaves] == pytest.approx([1.875, 1.75, 1.5, 1.0])
