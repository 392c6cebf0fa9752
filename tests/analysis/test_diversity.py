import numpy as np
import pytest
import torch
import torch.nn.functional as F
from probe_samples import make_layer, random_scores, values

from moge_bench.analysis.diversity import (
    centred_kernels,
    cka,
    expert_outputs,
    mean_pairwise_cosine,
    measure,
    measure_between,
)
from moge_bench.ops.reference_experts import ACTIVATIONS

ALIVE = np.ones(16)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(w_in, b_in, w_out, b_out, x, gate):
    halves = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out, "inputs": x}
    halves = {name: value.half() for name, value in halves.items()}
    return make_layer(random_scores(len(x), len(w_in)), gate=gate, **halves)


def random_layer(seed=0, experts=16, d=16, f=32, tokens=600):
    shapes = ((experts, f, d), (experts, f), (experts, d, f), (experts, d), (tokens, d),
              (experts, d))  # fmt: skip
    return layer_of(*(draw(*shape, seed=seed + i) for i, shape in enumerate(shapes)))


def copies():
    """Sixteen experts that are one."""
    layer = random_layer(experts=1)
    same = {name: layer.tensors[name].expand(16, *layer.tensors[name].shape[1:])
            for name in ("w_in", "b_in", "w_out", "b_out", "gate")}  # fmt: skip
    return make_layer(random_scores(600), inputs=layer.tensors["inputs"], **same)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_are_those_of_the_layers_experts(activation):
    layer = random_layer()
    t = {name: value.float() for name, value in layer.tensors.items()}
    hidden = ACTIVATIONS[activation](t["inputs"] @ t["w_in"][3].T + t["b_in"][3])
    expected = hidden @ t["w_out"][3].T + t["b_out"][3]
    assert torch.allclose(expert_outputs(layer, activation)[3], expected, atol=1e-3)


def test_copies_of_one_expert_are_alike_in_every_way():
    found = values(measure(copies(), "relu", ALIVE))
    assert found == {name: pytest.approx(1.0, abs=1e-5) for name in (
        "diversity_output_cosine", "diversity_output_cka", "diversity_weight_cosine",
        "diversity_router_cosine")}  # fmt: skip


def test_weights_drawn_apart_have_nothing_in_common():
    found = values(measure(random_layer(), "relu", ALIVE))
    # 120 pairs of vectors of 16 and of 1,072 entries: standard errors .25 / 11 and .03 / 11.
    assert abs(found["diversity_router_cosine"]) < 0.07
    assert abs(found["diversity_weight_cosine"]) < 0.01


def test_cosine_of_a_pair():
    # cos of (1, 0) and (1, 1) is 1 / sqrt 2; of opposite vectors -1; the mean of both sets.
    sets = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [-1.0, 0.0]]])
    assert mean_pairwise_cosine(sets) == pytest.approx((2**-0.5 - 1) / 2)


class TestCKA:
    def test_of_independent_features_is_0_where_the_biased_one_is_not(self):
        """With 64 tokens of 32 features: the debiased estimate has no offset."""
        features = draw(20, 64, 32)
        found = cka(*[centred_kernels(features)] * 2)[~torch.eye(20, dtype=torch.bool)]
        centred = features - features.mean(1, keepdim=True)
        grams = F.normalize((centred @ centred.mT).flatten(1), dim=1)
        biased = (grams @ grams.T)[~torch.eye(20, dtype=torch.bool)]
        assert abs(float(found.mean())) < 0.02 < 0.25 < float(biased.mean())

    def test_does_not_see_a_rotation_a_scale_or_an_offset(self):
        features = draw(1, 64, 8)
        rotation, _ = torch.linalg.qr(draw(8, 8, seed=1))
        moved = 3 * features @ rotation + 5
        assert float(cka(centred_kernels(features), centred_kernels(moved))) == pytest.approx(
            1, abs=1e-5)  # fmt: skip

    def test_is_the_ratio_of_unbiased_hsic(self):
        """Song et al.'s formula: [tr KL + 1'K1 1'L1 / ((m-1)(m-2)) - 2 1'KL1 / (m-2)]."""
        x, y = draw(20, 5).double().numpy(), draw(20, 3, seed=1).double().numpy()
        y = y + x[:, :3]

        def hsic(a, b):
            m, (k, other) = len(a), (each @ each.T for each in (a, b))
            np.fill_diagonal(k, 0)
            np.fill_diagonal(other, 0)
            return (np.trace(k @ other) + k.sum() * other.sum() / ((m - 1) * (m - 2))
                    - 2 * (k @ other).sum() / (m - 2))  # fmt: skip

        expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
        kernels = [centred_kernels(torch.from_numpy(each)[None]) for each in (x, y)]
        assert float(cka(*kernels)) == pytest.approx(expected, abs=1e-5)

    def test_of_constant_outputs_is_not_defined(self):
        assert cka(*[centred_kernels(torch.ones(1, 10, 3))] * 2).isnan().all()


def test_dead_experts_do_not_count():
    """Of four that are alike and twelve that are not, only the four are alive."""
    same, apart = copies().tensors, random_layer(experts=16).tensors
    mixed = {
        name: torch.cat([same[name][:4], apart[name][4:]])
        for name in ("w_in", "b_in", "w_out", "b_out", "gate")
    }
    layer = make_layer(random_scores(600), inputs=same["inputs"], **mixed)
    four = values(measure(layer, "relu", np.arange(16) < 4))
    assert four == {name: pytest.approx(1.0, abs=1e-5) for name in four} and len(four) == 4
    assert values(measure(layer, "relu", ALIVE))["diversity_output_cka"] < 0.7
    null = measure_between((layer, copies()), "relu", (np.arange(16) < 4, ALIVE))
    assert null[0].value == pytest.approx(1.0, abs=1e-5)


def test_between_seeds():
    def between(*layers):
        return measure_between(layers, "relu", (ALIVE, ALIVE))

    (alike,) = between(copies(), copies())
    (apart,) = between(random_layer(), random_layer(seed=50))
    assert (alike.name, alike.block) == ("diversity_null_cka", 2)
    # The inputs too are drawn apart, so that nothing is in common.
    assert alike.value == pytest.approx(1, abs=1e-5) and abs(apart.value) < 0.02
