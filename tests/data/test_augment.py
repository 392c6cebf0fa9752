import pytest
import torch

from moge_bench.config import ImageDataConfig
from moge_bench.data.augment import (
    augment,
    augment_pixels,
    draw_crop,
    erase,
    mix,
    resized_crop,
)


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


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_resized_crop_lies_in_the_image_and_has_the_share_of_its_area():
    image, shares = torch.rand(3, 30, 40), []
    draws = generator()
    for _ in range(200):
        top, left, height, width = draw_crop(image, draws, 0.25)
        assert 0 <= top <= 30 - height and 0 <= left <= 40 - width
        assert 0.7 < width / height < 1.43  # 3/4 to 4/3, and the rounding to whole pixels
        shares.append(height * width / 1200)
    assert min(shares) > 0.22 and max(shares) <= 1 and max(shares) - min(shares) > 0.5


def test_a_crop_that_cannot_fit_is_the_largest_in_the_centre():
    # 100 x 10: an aspect of 3/4 to 4/3 holds at most 10 / 0.75 = 13 rows, the area at least 900.
    assert draw_crop(torch.rand(1, 100, 10), generator(), 0.9) == (43, 0, 13, 10)


def test_a_crop_of_the_wanted_size_is_the_image_itself():
    image = torch.rand(3, 8, 9)
    assert torch.equal(resized_crop(image, (1, 2, 5, 5), 5), image[:, 1:6, 2:7])
    grown = resized_crop(image, (1, 2, 5, 5), 10)
    assert grown.shape == (3, 10, 10) and 0 <= float(grown.min()) <= float(grown.max()) <= 1


def test_pixels_are_augmented_as_the_settings_say():
    images = list(torch.rand(6, 3, 12, 14).unbind())
    data = ImageDataConfig(resized_crop=0.3, flip=True, crop_padding=1, rand_augment=9)
    first = augment_pixels(images, generator(), data, 8)
    assert first.shape == (6, 3, 8, 8)
    assert torch.equal(first, augment_pixels(images, generator(), data, 8))
    assert not torch.equal(first, augment_pixels(images, generator(1), data, 8))
    plain = augment_pixels(
        [image[:, :8, :8] for image in images], generator(), ImageDataConfig(), 8
    )
    assert torch.equal(plain, torch.stack(images)[:, :, :8, :8])


def test_erasing_changes_one_rectangle_of_the_chosen_images():
    images = torch.full((100, 2, 20, 20), 7.0)
    erased = erase(images, generator(), 0.25)
    changed = (erased != 7).any(1)
    areas = changed.flatten(1).sum(1)
    assert 12 < int((areas > 0).sum()) < 38  # 25 of 100 expected, standard deviation 4.3
    for mask, area in zip(changed, areas.tolist(), strict=True):
        if area:
            rows, cols = mask.any(1).sum(), mask.any(0).sum()
            assert area == rows * cols  # a full rectangle
            assert 0.015 * 400 < area < 0.36 * 400  # 2 % to 33 %, rounded to whole pixels
    assert float(erased[changed[:, None].expand_as(erased)].std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(erase(images, generator(), 0.0), images)


def test_mixup_mixes_images_and_classes_alike():
    images, labels = torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 2, 2])
    mixed, targets = mix(images, labels, generator(), num_classes=3, mixup=0.8, cutmix=0.0)
    lam = float(targets[0, 0])
    assert 0 < lam < 1
    torch.testing.assert_close(mixed, lam * images + (1 - lam) * images.flip(0))
    # Rows: lam of the own class, 1 - lam of that of the reversed batch: 2, 2, 1, 0.
    expected = [[lam, 0, 1 - lam], [0, lam, 1 - lam], [0, 1 - lam, lam], [1 - lam, 0, lam]]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_cutmix_weighs_classes_by_the_area_that_was_pasted():
    images = torch.arange(2.0)[:, None, None, None].expand(2, 1, 10, 10)
    draws, shares = generator(), []
    for _ in range(50):
        mixed, targets = mix(
            images, torch.tensor([0, 1]), draws, num_classes=2, mixup=0.0, cutmix=1.0
        )
        pasted = float((mixed[0] == 1).float().mean())
        assert float(targets[0, 1]) == pytest.approx(pasted)
        shares.append(pasted)
    # 1 - lam is uniform, less what hangs over the edges.
    assert 0.1 < sum(shares) / 50 < 0.5


def test_with_both_a_coin_decides():
    images, draws = torch.rand(2, 1, 9, 9), generator()
    cut = 0
    for _ in range(100):
        mixed, _ = mix(images, torch.tensor([0, 1]), draws, num_classes=2, mixup=0.8, cutmix=1.0)
        own = (mixed == images) | (mixed == images.flip(0))
        cut += bool(own.all())
    assert 30 < cut < 70  # 50 expected, standard deviation 5
