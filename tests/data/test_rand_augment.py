import pytest
import torch

from moge_bench.data import rand_augment as ra

ONE, PLUS = torch.ones(1), torch.ones(1)


def draw(images, seed=0, magnitude=9.0):
    return ra.rand_augment(images, torch.Generator().manual_seed(seed), magnitude)


def test_a_seed_decides_and_pixels_stay_between_0_and_1():
    images = torch.rand(64, 3, 12, 10)
    first, again, other = draw(images), draw(images), draw(images, seed=1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == images.shape
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    # Each of 2 operations is carried out with probability 1/2: 1/4 of the images stay, 16 of 64.
    same = (first == images).flatten(1).all(1).sum()
    assert 5 < int(same) < 30


def test_what_is_drawn_does_not_depend_on_the_images():
    states = []
    for images in (torch.rand(8, 3, 6, 6), torch.zeros(8, 1, 4, 9)):
        generator = torch.Generator().manual_seed(3)
        ra.rand_augment(images, generator, 9.0)
        states.append(generator.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("name", ra.OPS)
def test_every_operation_keeps_shape_and_works_on_one_channel(name):
    for shape in ((2, 3, 5, 7), (2, 1, 4, 4), (1, 3, 1, 1)):
        images = torch.rand(shape)
        out = ra.OPS[name](images, torch.full((shape[0],), 0.9), torch.ones(shape[0]))
        assert out.shape == images.shape and out.isfinite().all()


@pytest.mark.parametrize(
    "name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y", "color", "contrast",
             "brightness", "sharpness", "solarize_add"]
)  # fmt: skip
def test_strength_zero_changes_nothing(name):
    images = torch.rand(2, 3, 6, 8)
    out = ra.OPS[name](images, torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(out, images, rtol=0, atol=2e-6)


def test_operations_by_hand():
    x = torch.tensor([0.2, 0.4, 0.6, 0.8]).reshape(1, 1, 2, 2)
    # (x - 0.2) / 0.6
    expected = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(ra.autocontrast(x, ONE, PLUS), expected)
    # Four levels of a pixel each: ranks 1..4, less the lowest one, over 3.
    torch.testing.assert_close(ra.equalize(x, ONE, PLUS), expected)
    torch.testing.assert_close(ra.invert(x, ONE, PLUS), 1 - x)
    # At least 1 - 0.5 is inverted: 0.6 -> 0.4, 0.8 -> 0.2.
    solarized = torch.tensor([0.2, 0.4, 0.4, 0.2]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(ra.solarize(x, ONE / 2, PLUS), solarized)
    # Below 128 / 255 is added 0.5 * 110 / 255 = 0.2157.
    added = torch.tensor([0.4157, 0.6157, 0.6, 0.8]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(ra.solarize_add(x, ONE / 2, PLUS), added, rtol=0, atol=1e-4)
    # 4 - floor(0.5 * 4) = 2 bits: levels of 64 / 255: 51, 102, 153, 204 -> 0, 64, 128, 192.
    bits = torch.tensor([0, 64, 128, 192]).reshape(1, 1, 2, 2) / 255
    torch.testing.assert_close(ra.posterize(x, ONE / 2, PLUS), bits)
    # Factor 1 - 0.9 * 1 = 0.1: a tenth of the distance from black; from the mean, 0.5.
    torch.testing.assert_close(ra.brightness(x, ONE, -PLUS), 0.1 * x)
    torch.testing.assert_close(ra.contrast(x, ONE, -PLUS), 0.5 + 0.1 * (x - 0.5))
    # Grey of red alone: 0.299. Factor 0.1.
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    towards = torch.tensor([0.299 + 0.1 * 0.701, 0.9 * 0.299, 0.9 * 0.299]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(ra.color(red, ONE, -PLUS), towards)


def test_a_channel_of_one_value_stays():
    x = torch.full((1, 1, 3, 3), 0.3)
    assert torch.equal(ra.autocontrast(x, ONE, PLUS), x)
    assert torch.equal(ra.equalize(x, ONE, PLUS), x)


def test_moves_go_as_far_as_they_say():
    x = torch.zeros(1, 1, 10, 20)
    x[0, 0, 5, 10] = 1
    # 0.45 * 20 = 9 columns, 0.45 * 10 * 2 / 3 = 3 rows.
    moved = ra.translate_x(x, ONE, PLUS)
    assert moved[0, 0, 5].argmax() == 10 - 9
    moved = ra.translate_y(x, ONE * 2 / 3, -PLUS)
    assert moved[0, 0, :, 10].argmax() == 5 + 3
    # A quarter turn three times over: 30 degrees each, of a point in the middle of a side.
    square = torch.zeros(1, 1, 21, 21)
    square[0, 0, 10, 18] = 1
    turned = square
    for _ in range(3):
        turned = ra.rotate(turned, ONE, PLUS)
    row, col = divmod(int(turned.flatten().argmax()), 21)
    assert abs(col - 10) <= 1 and abs(row - 10) in (7, 8, 9)


def test_smoothing_keeps_the_border_and_the_mean():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    # Factor 0.1: 0.9 of the smooth image, whose weights are 5/13 in the centre and 1/13 around.
    out = ra.sharpness(x, ONE, -PLUS)
    assert float(out[0, 0, 2, 2]) == pytest.approx(0.1 + 0.9 * 5 / 13)
    assert float(out[0, 0, 1, 1]) == pytest.approx(0.9 / 13)
    assert float(out[0, 0, 0, 0]) == 0
