import numpy as np
import pytest
import torch
from probe_samples import make_layer, make_probe, random_scores, values

from moge_bench.analysis.maps import Map
from moge_bench.analysis.topography import class_preference, correlations, measure, morans_i

LOAD = np.arange(64.0)


def ordered_scores(place, tokens=600, width=1.0):
    """Each token has a bump of scores around a random place of the map."""
    centres = torch.randint(
        place.num_experts, (tokens,), generator=torch.Generator().manual_seed(0)
    )
    distances = torch.from_numpy(place.distances)[centres].double()
    noise = torch.rand(tokens, place.num_experts, generator=torch.Generator().manual_seed(1))
    return (-distances.square() / (2 * width**2) + 0.1 * noise).softmax(1)


class TestScores:
    def test_a_map_in_order_falls_off_with_distance(self):
        place = Map(8, 8, "torus")
        layer = make_layer(ordered_scores(place), place)
        found = measure(layer, make_probe(600), LOAD)
        curve = [values(found, f"distance_{d}")["topography_score_correlation"] for d in (1, 2, 3)]
        assert curve[0] > 0.3 and curve[0] > curve[1] > curve[2]
        assert values(found)["topography_score_excess"] > 0.3
        assert values(found)["topography_score_excess_p"] == 1 / 500

    def test_that_of_logits_does_not_depend_on_how_certain_the_router_is(self):
        place = Map(8, 8, "torus")
        logits = ordered_scores(place, width=2.0).log()
        logits += torch.randn(600, 1, generator=torch.Generator().manual_seed(2))  # no softmax sees
        found = [
            values(measure(make_layer((f * logits).softmax(1), place, logits=f * logits),
                           make_probe(600), LOAD))
            for f in (1.0, 6.0)
        ]  # fmt: skip
        logit, score = (
            [each[f"topography_{what}_excess"] for each in found] for what in ("logit", "score")
        )
        assert logit[0] == pytest.approx(logit[1]) and logit[0] > 0.3
        assert score[1] < 0.85 * score[0]

    def test_the_same_map_shuffled_has_no_order(self):
        place = Map(8, 8, "torus")
        order = torch.randperm(64, generator=torch.Generator().manual_seed(5))
        layer = make_layer(ordered_scores(place)[:, order], place)
        found = values(measure(layer, make_probe(600), LOAD))
        # Over permutations the excess has a standard deviation of about .01.
        assert abs(found["topography_score_excess"]) < 0.05
        assert found["topography_score_excess_p"] > 0.02

    def test_independent_scores_have_none(self):
        layer = make_layer(random_scores(600, 64), Map(8, 8, "valid"))
        found = measure(layer, make_probe(600), LOAD)
        assert abs(values(found)["topography_score_excess"]) < 0.01
        assert max(int(n.at[9:]) for n in found if n.at) == 7  # from edge to edge

    def test_an_expert_of_constant_score_is_left_out(self):
        matrix = correlations(np.array([[1.0, 1.0, 0.3], [2.0, 0.0, 0.3], [3.0, -1.0, 0.3]]))
        assert matrix[0, 1] == pytest.approx(-1)
        assert np.isnan(matrix[2]).all()


class TestCoselection:
    def test_of_neighbours(self):
        """Experts 0 and 1, or 10 and 11, are chosen together: two pairs of neighbours."""
        scores = torch.full((400, 16), 0.01)
        scores[::2, :2] = 0.4
        scores[1::2, 10:12] = 0.4
        found = measure(make_layer(scores, Map(4, 4, "valid"), top_k=2), make_probe(), LOAD[:16])
        # phi: 1 within a pair, -1 between pairs (0 and 10 are at distance 2, and so are 0 and 11,
        # 1 and 11; 1 and 10 too); all others are never chosen: of no correlation.
        assert values(found, "distance_1")["topography_coselection"] == 1
        assert values(found, "distance_2")["topography_coselection"] == pytest.approx(-1)

    def test_there_is_none_of_one_choice(self):
        names = values(measure(make_layer(random_scores()), make_probe(), LOAD[:16]))
        assert not any("coselection" in name for name in names)


class TestMoran:
    def test_of_a_gradient_by_hand(self):
        # 1x4, valid: 0 1 2 3, mean 1.5. Ordered pairs of neighbours: 2 (1.5*.5 - .25 + .5*1.5) =
        # 2.5, W = 6; squares 2 (2.25 + .25) = 5: I = (4 / 6) 2.5 / 5 = 1/3.
        value = morans_i(np.arange(4.0)[:, None], Map(1, 4, "valid"))
        assert value == pytest.approx(1 / 3)

    def test_of_alternating_values_is_least(self):
        # 1x4 on a torus: every neighbour differs, each product is -1.
        assert morans_i(np.array([[1.0], [-1], [1], [-1]]), Map(1, 4, "torus")) == -1

    def test_of_vectors_is_the_mean_over_components_of_equal_spread(self):
        place, generator = Map(4, 4), np.random.default_rng(0)
        columns = generator.standard_normal((16, 3))
        columns /= columns.std(0)
        apart = [morans_i(columns[:, [i]], place) for i in range(3)]
        assert morans_i(columns, place) == pytest.approx(np.mean(apart))

    def test_without_an_order_has_a_uniform_p(self):
        ps, values_of = [], np.random.default_rng(0)
        for _ in range(20):
            load = values_of.poisson(30, size=16).astype(float)
            layer = make_layer(random_scores(40))
            ps.append(values(measure(layer, make_probe(40), load))["topography_load_moran_p"])
        assert 0.3 < np.mean(ps) < 0.7  # mean 1/2, standard error .065

    def test_of_equal_loads_is_not_defined(self):
        found = values(measure(make_layer(random_scores()), make_probe(), np.full(16, 3.1)))
        assert "topography_load_moran" not in found
        assert "topography_load_moran_p" not in found

    def test_of_router_rows_in_order(self):
        place = Map(4, 8, "torus")
        angle = torch.arange(32) % 8 * (2 * torch.pi / 8)
        gate = torch.stack([angle.cos(), angle.sin()], 1)  # the column decides, all the way round
        layer = make_layer(random_scores(40, 32), place, gate=gate)
        found = values(measure(layer, make_probe(40), LOAD[:32]))
        # Of 8 neighbours 2 have the same row, 6 one turned by 45 degrees: (2 + 6 / sqrt 2) / 8.
        assert found["topography_router_moran"] == pytest.approx((2 + 6 / 2**0.5) / 8, rel=1e-5)
        assert found["topography_router_moran_p"] == 1 / 500


def test_class_preference():
    scores = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    # Tokens 0 and 1 are of class 4, token 2 of class 7: (.9 + .3) / 1.8 and (.1 + .7) / 1.2.
    found = class_preference(scores, np.array([4, 4, 7]))
    assert found == pytest.approx(np.array([[2 / 3, 1 / 3], [2 / 3, 1 / 3]]))
