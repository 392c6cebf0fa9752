import numpy as np
import torch
from probe_samples import make_layer, values

from moge_bench.analysis.dynamics import changed_share, measure


def test_an_order_of_the_same_experts_is_no_change():
    before = np.array([[0, 1], [2, 3], [4, 5]])
    after = np.array([[1, 0], [2, 6], [4, 5]])
    assert changed_share(before, after) == 1 / 3
    assert changed_share(before, before) == 0


def layer(percents):
    """Four tokens; at each point one more of them has its last expert, from the second on."""
    scores = torch.eye(4)[[0, 1, 2, 3]] * 0.7 + 0.1
    kept = {}
    for place, percent in enumerate(percents):
        experts = torch.tensor([[3], [2], [1], [0]])
        experts[:place, 0] = torch.arange(4)[:place]
        kept[f"after_{percent}.experts"] = experts.to(torch.int16)
        kept[f"after_{percent}.margin"] = torch.full((4,), 0.5 * place).half()
    return make_layer(scores, **kept)


def test_changes_and_margins():
    found = measure(layer((10, 25, 50, 75)))
    # One token of four changes from point to point; the fourth one at the end.
    changes = {
        at: values(found, at)["dynamics_changed"]
        for at in ("after_25", "after_50", "after_75", "after_100")
    }
    assert set(changes.values()) == {0.25}
    assert values(found, "after_75")["dynamics_margin"] == 1.5
    # At the end log(.8 / .1) = 2.079 for every token.
    assert values(found) == {"dynamics_changed": 0.25, "dynamics_margin": 2.07944}


def test_a_short_run_has_fewer_points():
    found = measure(layer((50, 75)))
    assert {n.at for n in found if n.name == "dynamics_changed"} == {"after_75", "after_100", None}


def test_without_a_history_there_is_the_margin_at_the_end():
    assert values(measure(layer(()))) == {"dynamics_margin": 2.07944}
