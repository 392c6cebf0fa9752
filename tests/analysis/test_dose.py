import pytest
import torch
from probe_samples import make_layer, random_scores, values
from record_samples import make_record

from moge_bench import group_norm
from moge_bench.analysis.dose import group_loss, measure, measure_training
from moge_bench.analysis.maps import Map
from moge_bench.presets import resolve


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


def test_the_curves_of_a_training_are_read_by_name():
    config = resolve("tiny-vit", "moge")
    curves = [{"step": step, "name": name, "split": split, "value": value}
              for step, name, split, value in [
                  (10, "group_gradient_ratio", "training", 0.25),
                  (20, "group_gradient_ratio", "training", 0.75),
                  (20, "group_loss", "training", 0.1), (10, "group_loss", "training", 0.2),
                  (20, "group_loss", "validation", 9.0)]]  # fmt: skip
    assert values(measure_training(make_record(config, curves=curves))) == {
        "dose_gradient_ratio": 0.5,
        "dose_gradient_peak": 0.75,
        "dose_training_loss": 0.1,
    }
    assert measure_training(make_record(config)) == []
