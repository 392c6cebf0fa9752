"""The dose is |w grad L| / |grad task loss| at the gate, and measuring it changes no training."""

from statistics import median

import pytest
import torch

from moge_bench import MoELayer
from moge_bench.presets import resolve
from moge_bench.training.dose import is_measured, measure_doses
from moge_bench.training.dose_curve import curve_name, typical_dose
from moge_bench.training.loop import train

pytestmark = pytest.mark.usefixtures("few_images")

STEPS = {"training.steps": 4, "training.batch_size": 16, "data.evaluate_test": False}


class TwoLayers(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.layers = torch.nn.ModuleList(MoELayer(8, 8, 6, top_k=2, **settings) for _ in range(2))

    def forward(self, x):
        auxes = []
        for layer in self.layers:
            y, aux = layer(x)
            x = x + y
            auxes.append(aux)
        return x, auxes


def doses_of(**settings):
    torch.manual_seed(0)
    model, x = TwoLayers(**settings), torch.randn(32, 8)
    y, auxes = model(x)
    return model, y.square().mean(), auxes


def test_the_ratio_is_that_of_the_gradients_by_hand():
    model, task, auxes = doses_of(group_size=2, group_weight=3.0, balance="none", aux_weight=0.5)
    doses = measure_doses(task, model, auxes)
    assert doses.keys() == {"group"}
    assert all(parameter.grad is None for parameter in model.parameters())
    gates = [layer.router.gate.weight for layer in model.layers]
    of_task = torch.autograd.grad(task, gates, retain_graph=True)
    total = 0.5 * 3.0 * (auxes[0].losses["group"] + auxes[1].losses["group"])
    of_group = torch.autograd.grad(total, gates)
    by_hand = [float(g.norm() / t.norm()) for g, t in zip(of_group, of_task, strict=True)]
    assert doses["group"].tolist() == pytest.approx(by_hand)


def test_it_is_linear_in_the_weight():
    kinds = {"group_weight": {"group_size": 2}, "regularizer_weight": {"regularizer": "entropy"}}
    for name, settings in kinds.items():
        term = name.removesuffix("_weight")
        one = measure_doses(*_arguments(doses_of(**{name: 1.0}, **settings)))[term]
        ten = measure_doses(*_arguments(doses_of(**{name: 10.0}, **settings)))[term]
        torch.testing.assert_close(ten, 10 * one)


def _arguments(made):
    model, task, auxes = made
    return task, model, auxes


def test_a_gate_that_the_task_does_not_reach_has_none():
    model, task, auxes = doses_of(group_size=2, group_weight=1.0)
    doses = measure_doses(
        task.detach() + 0 * model.layers[1].router.gate.weight.sum(), model, auxes
    )
    assert doses["group"].tolist() == [0, 0]


def test_points_are_spread_over_the_run():
    assert [step for step in range(100) if is_measured(step, 100)] == list(range(0, 100, 4))
    assert all(is_measured(step, 3) for step in range(3))


def test_a_run_records_the_dose_of_every_gate():
    result = train(resolve("tiny-vit", "moge", STEPS))
    for block, layer in zip((2, 3), result.routing, strict=True):
        points = [p for p in result.curves if p["name"] == curve_name("group", block)]
        assert [point["step"] for point in points] == [1, 2, 3, 4]
        assert layer["dose"] == pytest.approx(median(p["value"] for p in points))
        assert layer["dose"] > 0
        assert 0 < layer["score_entropy_normalized"] <= 1


def test_the_dose_of_a_run_is_not_that_of_its_first_step():
    """There the task hardly pulls at the gates yet, and any loss is strong beside it."""
    curve = [("dose_group_block1", value) for value in (9.0, 0.1, 0.3, 0.2)]
    others = [("dose_balance_block1", 5.0), ("dose_group_block2", 5.0), ("task_loss", 5.0)]
    assert typical_dose([*curve, *others], 1) == pytest.approx(0.25)
    assert typical_dose(others, 1) == 0.0


def test_plain_moe_has_a_dose_of_zero_and_the_yardstick_of_all():
    result = train(resolve("tiny-vit", "moe", STEPS))
    assert [layer["dose"] for layer in result.routing] == [0, 0]
    # Uniform scores on a torus of 64: every group has norm 1/64 = 0.0156, which is the least.
    assert all(layer["group_norm"] >= 1 / 64 for layer in result.routing)


def test_measuring_changes_no_training(monkeypatch):
    config = resolve("tiny-vit", "moge", STEPS)
    with_doses = train(config)
    monkeypatch.setattr("moge_bench.training.loop.is_measured", lambda *_: False)
    assert train(config).metrics == with_doses.metrics
