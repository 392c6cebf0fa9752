import pytest
import torch
from probe_samples import make_layer, random_scores, values
from record_samples import make_record

from moge_bench import group_norm
from moge_bench.analysis.dose import group_loss, measure, measure_training
from moge_bench.analysis.maps import Map
from moge_bench.presets import resolve
from moge_bench.training.dose_curve import curve_name


@pytest.mark.parametrize("border", ["valid", "torus"])
def test_is_the_group_loss_of_the_ops(border):
    scores = random_scores(experts=32)
    expected = group_norm(
        scores.double(), map_shape=(4, 8), group_size=3, sigma=1.0, border=border,
        backend="reference",
    )  # fmt: skip
    assert group_loss(scores.double().numpy(), Map(4, 8, border)) == pytest.approx(float(expected))


def test_uniform_scores_are_the_least_on_a_torus():
    layer = make_layer(torch.full((10, 64), 1 / 64), Map(8, 8, "torus"))
    found = values(measure(layer))
    # docs/method.md: 1/N, and for scores of norm 1 1/sqrt(N); eps moves them by less than 1e-4.
    assert found == {
        "dose_group_loss": pytest.approx(1 / 64, rel=1e-4),
        "dose_unit_energy": pytest.approx(1 / 8, rel=1e-4),
    }


def test_the_curves_of_a_training():
    config = resolve("tiny-vit", "moge")
    curves = [{"step": step, "name": curve_name(term, block), "split": "training", "value": value}
              for step, term, block, value in [
                  (1, "group", 2, 0.25), (1, "group", 3, 1.0), (1, "balance", 2, 0.5),
                  (2, "group", 2, 0.75), (2, "group", 3, 3.0), (2, "balance", 2, 0.5)]]  # fmt: skip
    curves += [{"step": 2, "name": "task_loss", "split": "training", "value": 9.0}]
    found = measure_training(make_record(config, curves=curves))
    assert {(number.name, number.block): number.value for number in found} == {
        ("dose_balance_ratio", 2): 0.5, ("dose_balance_peak", 2): 0.5,
        ("dose_group_ratio", 2): 0.5, ("dose_group_peak", 2): 0.75,
        ("dose_group_ratio", 3): 2.0, ("dose_group_peak", 3): 3.0,
    }  # fmt: skip
    assert measure_training(make_record(config)) == []
