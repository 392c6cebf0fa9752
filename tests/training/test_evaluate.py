import math

import pytest
import torch

from moge_bench import MoELayer
from moge_bench.metrics import METRICS
from moge_bench.training.evaluate import RoutingStatistics, _normalized_entropy


@pytest.mark.parametrize(
    ("load", "entropy"),
    [
        ([5, 5, 5, 5], 1.0),
        ([7, 0, 0], 0.0),
        ([3], 1.0),  # nothing else could be
        ([0, 0], 0.0),  # nothing was routed
        # Shares 1/2, 1/4, 1/4: (1/2 log 2 + 2 * 1/4 log 4) / log 3 = 1.5 log 2 / log 3.
        ([2, 1, 1], 1.5 * math.log(2) / math.log(3)),
        # Shares 1/8, 7/8, with an expert that got none.
        ([1, 7, 0], (math.log(8) / 8 + 7 / 8 * math.log(8 / 7)) / math.log(3)),
    ],
)
def test_entropy_of_the_load(load, entropy):
    found = _normalized_entropy(torch.tensor(load, dtype=torch.float64))
    assert found == pytest.approx(entropy, abs=1e-12)


def test_entropy_is_what_torch_computes():
    load = torch.randint(0, 10_000, (64,), generator=torch.Generator().manual_seed(0)).double()
    expected = float(torch.special.entr(load / load.sum()).sum()) / math.log(64)
    assert _normalized_entropy(load) == pytest.approx(expected, abs=1e-12)


def test_every_routing_metric_is_a_number_that_an_evaluation_has():
    """A path that names none would be a dash in every table."""
    statistics = RoutingStatistics()
    statistics.add([MoELayer(8, 8, num_experts=9, top_k=1)(torch.randn(5, 8))[1]])
    # The dose is added by the training loop.
    recorded = {f"routing.{name}" for name in (*statistics.summary()[0], "dose")}
    paths = {m.path for m in METRICS.values() if m.source == "evaluation" and m.path}
    assert paths - recorded == set()
