import pytest
import torch

from moge_bench.data.augment import augment


def draw(images, seed=0, **settings):
    return augment(images, torch.Generator().manual_seed(seed), **settings)


def test_without_settings_nothing_changes_and_nothing_is_drawn():
    images, generator = torch.randn(3, 2, 4, 5), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(images, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_a_flip_is_a_mirror_image_of_about_half():
    images = torch.arange(200.0 * 6).reshape(200, 1, 2, 3)
    flipped = draw(images, flip=True)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 70 < int(mirrored.sum()) < 130  # 100 expected, standard deviation 7


def test_a_crop_is_the_image_shifted_by_at_most_the_padding():
    images = torch.randn(50, 3, 4, 5)
    cropped = draw(images, crop_padding=1, fill=-7.0)
    shifts = set()
    for image, found in zip(images, cropped, strict=True):
        padded = torch.full((3, 6, 7), -7.0)
        padded[:, 1:5, 1:6] = image
        places = [(i, j) for i in range(3) for j in range(3)
                  if torch.equal(padded[:, i : i + 4, j : j + 5], found)]  # fmt: skip
        assert len(places) == 1
        shifts.update(places)
    assert len(shifts) == 9  # of 3 x 3 places, 50 draws miss one with probability 9 (8/9)^50 = 2 %


def test_equal_seeds_draw_equal_images_and_others_do_not():
    images = torch.randn(20, 1, 8, 8)
    settings = {"flip": True, "crop_padding": 2}
    assert torch.equal(draw(images, 1, **settings), draw(images, 1, **settings))
    assert not torch.equal(draw(images, 1, **settings), draw(images, 2, **settings))


def test_a_negative_padding_is_named():
    with pytest.raises(ValueError, match="crop_padding must be at least 0, got -1"):
        draw(torch.zeros(1, 1, 2, 2), crop_padding=-1)
