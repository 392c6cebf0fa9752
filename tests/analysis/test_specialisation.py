import numpy as np
import pytest
import torch
from probe_samples import LENGTH, make_layer, make_probe, values

from moge_bench.analysis.specialisation import frequent_tokens, measure, mutual_information


def layer_choosing(experts, num_experts=16):
    return make_layer(torch.nn.functional.one_hot(torch.as_tensor(experts), num_experts) * 1.0)


def random_classes(tokens, classes=4, seed=0):
    """One class an image of LENGTH tokens."""
    return np.random.default_rng(seed).integers(classes, size=tokens // LENGTH).repeat(LENGTH)


def test_mutual_information_of_known_tables():
    experts = np.arange(4).repeat(100)[:, None]
    # Of four equally frequent classes: log2 4 = 2 bits. Entropies of 4 cells each, n = 400: the
    # correction is (3 + 3 - 3) / 800 nats.
    assert mutual_information(experts, experts[:, 0]) == pytest.approx(2 + 3 / 800 / np.log(2))
    # Independent: 16 cells of 25; the correction (3 + 3 - 15) / 800 nats.
    labels = np.tile(np.arange(4), 100)
    assert mutual_information(experts, labels) == pytest.approx(-9 / 800 / np.log(2))


def test_two_choices_are_two_observations():
    both = np.array([[0, 1]] * 50 + [[2, 3]] * 50)
    # The class tells which half: 1 bit. Cells: 4 experts, 2 classes, 4 pairs, n = 200.
    expected = 1 + (3 + 1 - 3) / 400 / np.log(2)
    assert mutual_information(both, np.arange(2).repeat(50)) == pytest.approx(expected)


def test_an_expert_for_each_class():
    classes = random_classes(400)
    found = values(measure(layer_choosing(classes), make_probe(labels=classes)))
    # Four classes, not quite equally frequent: the entropy of the class.
    shares = np.bincount(classes) / 400
    entropy = -(shares * np.log2(shares)).sum()
    assert found["specialisation_class"] == pytest.approx(entropy, abs=0.02)
    assert found["specialisation_class_p"] == pytest.approx(1 / 500)
    assert abs(found["specialisation_position"]) < 0.02


def test_a_later_stage_has_fewer_tokens_of_the_same_images():
    """A Swin merges tokens: here 4 of an image to 2, whose class is the image's."""
    classes = random_classes(400)
    layer, probe = layer_choosing(classes[::2]), make_probe(labels=classes)
    assert probe.labels_of(layer).tolist() == classes[::2].tolist()
    assert probe.positions_of(layer).tolist() == [0, 1] * 100
    whole, found = (
        values(measure(layer_choosing(chosen), probe)) for chosen in (classes, classes[::2])
    )
    assert found["specialisation_class"] == pytest.approx(whole["specialisation_class"], abs=0.05)
    assert abs(found["specialisation_position"]) < 0.05


def test_tokens_that_are_no_whole_number_an_example_are_refused():
    with pytest.raises(ValueError, match="block 2 has 399 tokens of 100 examples"):
        make_probe().labels_of(layer_choosing([0] * 399))
    with pytest.raises(ValueError, match="block 2 has 200 tokens of 100 examples"):
        make_probe(kind="text").labels_of(layer_choosing([0] * 200))


@pytest.mark.parametrize("num_experts", [16, 64])
def test_the_number_of_experts_does_not_matter(num_experts):
    """Each class has its share of the experts, of which a token takes any: log2 4 = 2 bits.

    The mean under permuted labels, which is not 0 for few images, grows with the experts.
    """
    classes = np.arange(400) // LENGTH % 4
    drawn = np.random.default_rng(1).integers(num_experts // 4, size=400)
    layer = layer_choosing(classes * (num_experts // 4) + drawn, num_experts)
    found = values(measure(layer, make_probe(labels=classes)))
    assert found["specialisation_class"] == pytest.approx(2, abs=0.05)


def test_an_expert_for_each_position():
    positions = torch.arange(LENGTH).repeat(100)
    found = values(measure(layer_choosing(positions), make_probe(labels=random_classes(400))))
    assert found["specialisation_position"] == pytest.approx(2, abs=0.05)  # log2 4
    assert abs(found["specialisation_class"]) < 0.02


def test_the_null_keeps_the_tokens_of_an_image_together():
    """An expert an image, drawn at random, tells nothing of the class; tokens alone would say so.

    100 images of 4 tokens are 100 observations, not 400.
    """
    ps = []
    for seed in range(20):
        experts = random_classes(400, 16, seed=100 + seed)
        labels = random_classes(400, seed=seed)
        found = values(measure(layer_choosing(experts), make_probe(labels=labels)))
        ps.append(found["specialisation_class_p"])
    # Uniform: mean 1/2, standard error sqrt(1/12/20) = .065.
    assert 0.3 < np.mean(ps) < 0.7


def test_tokens_of_a_text():
    tokens = np.random.default_rng(0).integers(3, size=400)
    probe = make_probe(kind="text", tokens=torch.from_numpy(tokens).int())
    found = values(measure(layer_choosing(tokens), probe))
    assert found["specialisation_token"] == pytest.approx(np.log2(3), abs=0.05)
    assert "specialisation_class" not in found


def test_frequent_tokens():
    # 7 three times, 5 twice, then 2, 3, ... once: the lower ids first, 15 in all.
    tokens = np.array([7, 7, 7, 5, 5, *range(10, 30)])
    found = frequent_tokens(tokens)
    assert found[:5].tolist() == [0, 0, 0, 1, 1]
    assert found[5:].tolist() == [*range(2, 15), *[15] * 7]
