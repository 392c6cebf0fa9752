import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from moge_bench.data.assets import ASSETS, Asset
from moge_bench.data.images import DATASETS, ImageSet, load_images


@pytest.fixture(scope="module")
def splits():
    return load_images("fashion-mnist-10k")


def test_splits_are_balanced_and_disjoint(splits):
    assert {name: len(split) for name, split in splits.items()} == {
        "training": 9000,
        "validation": 1000,
        "test": 10_000,
    }
    for split, per_class in (("training", 900), ("validation", 100), ("test", 1000)):
        assert torch.bincount(splits[split].labels).tolist() == [per_class] * 10
    rows = torch.cat([splits[name].images.flatten(1) for name in ("training", "validation")])
    assert len(rows.unique(dim=0)) > 9_990  # the data set itself holds a few equal images


def test_the_subset_is_what_its_records_were_measured_on(splits):
    subset = load_images("fashion-mnist-subset")
    assert torch.equal(subset["training"].images, splits["training"].images)
    # The first 200 test images of each class; the digest is of the file that was shipped then.
    pixels = (subset["test"].images * 0.3530 + 0.2860).mul(255).round().to(torch.uint8)
    assert pixels.shape == (2000, 1, 28, 28)
    digest = hashlib.sha256(pixels.numpy().tobytes() + subset["test"].labels.numpy().tobytes())
    assert digest.hexdigest() == "788913f16e63dd2807d7a60f72996ed9cdc8fc22d87d149006ad2cfc58281d8c"


def test_pixels_are_standardised_with_the_full_sets_figures(splits):
    # A black pixel is (0 - 0.2860) / 0.3530 = -0.8102; a white one (1 - 0.2860) / 0.3530 = 2.0227.
    assert float(splits["training"].images.min()) == pytest.approx(-0.8102, abs=1e-4)
    assert float(splits["training"].images.max()) == pytest.approx(2.0227, abs=1e-4)


def test_unknown_name_and_damaged_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nearest is 'fashion-mnist-10k'"):
        load_images("fashion-mnist")
    broken = tmp_path / "subset.npz"
    broken.write_bytes(b"cut short")
    asset = dataclasses.replace(ASSETS["fashion-mnist-10k"], path=broken)
    monkeypatch.setitem(ASSETS, "fashion-mnist-10k", asset)
    with pytest.raises(ValueError, match="is damaged: SHA-256 is"):
        load_images("fashion-mnist-subset")


def test_a_shipped_set_keeps_training_images_of_every_class(tmp_path, monkeypatch):
    """Of each class the last 100 are for validation: 101 of each leave one, 100 leave none."""

    def ship(num_each):
        labels = np.repeat(np.arange(2), num_each)
        images = np.zeros((len(labels), 4, 4), np.uint8)
        path = tmp_path / f"{num_each[1]}.npz"
        np.savez(path, train_images=images, train_labels=labels, test_images=images[:3],
                 test_labels=labels[:3])  # fmt: skip
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(ASSETS, "small", Asset(path, digest))
        monkeypatch.setitem(DATASETS, "small", ImageSet("small", 0.5, 0.25))
        return load_images("small")

    assert {name: len(s) for name, s in ship((101, 101)).items()} == {
        "training": 2, "validation": 200, "test": 3
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"more than 100 training images .* 100 of class 1"):
        ship((101, 100))
