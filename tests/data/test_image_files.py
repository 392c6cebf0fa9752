import io
import os
import pickle

import numpy as np
import pytest
import torch
from image_samples import CLASSES, pixel, write_cifar, write_folder, write_idx
from PIL import Image

from moge_bench.config import ImageDataConfig
from moge_bench.data.image_files import find_splits, image_set_files
from moge_bench.data.images import load_decoded


def load(path, size=8, channels=3, num_classes=3, **settings):
    data = ImageDataConfig(name=str(path), workers=0, **settings)
    return load_decoded(data, size, channels, num_classes)


def sizes(splits):
    return {name: len(split) for name, split in splits.items()}


def test_a_folder_per_class(tmp_path):
    splits = load(write_folder(tmp_path), mean=[0.5], std=[0.25])
    assert sizes(splits) == {"training": 30, "validation": 30, "test": 30}
    images, labels = splits["training"].__getitems__([0, 11, 29])
    assert labels.tolist() == [0, 1, 2]
    assert images.shape == (3, 3, 8, 8) and images.dtype == torch.float32
    # Class 1, image 1: 63 of 255 is (0.24706 - 0.5) / 0.25 = -1.0118; looked at off the corner.
    assert float(images[1, 0, 5, 5]) == pytest.approx((pixel(1, 1) / 255 - 0.5) / 0.25, abs=1e-5)


def test_without_a_validation_split_the_last_of_each_class_are_held_out(tmp_path):
    splits = load(write_folder(tmp_path, splits=("train", "test")), validation_share=0.2)
    assert sizes(splits) == {"training": 24, "validation": 6, "test": 30}
    assert splits["validation"].indices.tolist() == [8, 9, 18, 19, 28, 29]


def test_without_a_test_split_the_validation_split_is_the_test(tmp_path):
    splits = load(write_folder(tmp_path, splits=("train", "val")))
    assert sizes(splits) == {"training": 27, "validation": 3, "test": 30}
    assert splits["test"].source is not splits["training"].source


def test_mean_and_deviation_are_those_of_the_training_pixels(tmp_path):
    splits = load(write_folder(tmp_path, per_class=2))
    pixels = []
    for label in range(3):
        for number in range(2):  # 80 pixels, one of them white
            pixels += [pixel(label, number)] * 79 + [255]
    expected = np.array(pixels) / 255
    standard = splits["test"].standard
    assert standard.mean == pytest.approx([expected.mean()] * 3, abs=1e-4)
    assert standard.std == pytest.approx([expected.std()] * 3, abs=1e-4)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path, zipped):
    splits = load(write_idx(tmp_path, zipped), channels=1)
    assert sizes(splits) == {"training": 18, "validation": 2, "test": 20}
    split = splits["test"]
    assert [int(image[0, 0, 0] * 255 + 0.5) for image in split.pixels([0, 7])] == [0, 7]
    assert split.labels[:4].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar(tmp_path, version, hundred):
    splits = load(write_cifar(tmp_path, version, hundred), size=32, mean=[0.5], std=[0.5])
    total = 20 if hundred else 100
    assert len(splits["training"]) + len(splits["validation"]) == total
    image = splits["test"].pixels([4])[0] * 255
    assert splits["test"].labels[4] == 1
    assert image[:, 5, 5].round().tolist() == [10, 20, 30]
    assert image[0, 0, 0].round() == 4 and image[0, 0, 1].round() == 10


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def encoded(value):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    for name, count in (("train-00000-of-00002", 10), ("train-00001-of-00002", 10), ("test", 4)):
        rows = {"image": [encoded(v) for v in range(count)], "label": [v % 2 for v in range(count)]}
        parquet.write_table(pyarrow.table(rows), tmp_path / f"{name}.parquet")
    splits = load(tmp_path, channels=1)
    assert sizes(splits) == {"training": 18, "validation": 2, "test": 4}
    assert (splits["test"].pixels([3])[0] * 255).round().unique().tolist() == [3]


def test_tiny_imagenets_own_folders(tmp_path):
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "train" / name / "images"
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (number, i, 9)).save(folder / f"{name}_{i}.JPEG")
    (tmp_path / "val" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "images" / "val_0.JPEG")
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tcow\t0\t0\t62\t62\n")
    # Its test images have no labels, as ImageNet's, and are left out.
    (tmp_path / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "images" / "test_0.JPEG")
    assert "test" not in find_splits(tmp_path)
    assert find_splits(tmp_path)["validation"].labels == [2]
    assert annotations in image_set_files(tmp_path)
    annotations.write_text("val_1.JPEG\tcow\n")
    with pytest.raises(ValueError, match=r"line 1 names .*val_1.JPEG, which is not there"):
        find_splits(tmp_path)


def write_classes(folder, count=10):
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 20 * number + i).save(folder / name / f"{i:03}.png")
    return folder


def test_a_folder_per_class_is_enough(tmp_path):
    """The last tenth of each class is the test split, the one before it validation."""
    write_classes(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    splits = load(tmp_path, channels=1)
    per = len(CLASSES)
    assert sizes(splits) == {"training": 8 * per, "validation": per, "test": per}
    for name, place in (("validation", 8), ("test", 9)):
        pixels = splits[name].pixels(list(range(per)))
        found = sorted(round(float(image.max()) * 255) for image in pixels)
        assert found == [20 * number + place for number in range(per)]


@pytest.mark.parametrize(("split", "count"), [("", 2), ("train", 1)])
def test_a_class_without_a_training_image_is_refused(tmp_path, split, count):
    write_classes(tmp_path / split, count)
    if split:
        write_classes(tmp_path / "test")
    with pytest.raises(ValueError, match=f"no training image of class 0 left.*more than {count}"):
        load(tmp_path, channels=1)


def test_a_class_without_images_is_refused(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    (tmp_path / "train" / "zebra").mkdir()
    with pytest.raises(ValueError, match=r"train/zebra has no image: a class must have some"):
        find_splits(tmp_path)


@pytest.mark.parametrize("name", ["flat", "-1"])
def test_a_test_split_without_labels_is_left_out(tmp_path, name):
    if name == "flat":
        write_classes(tmp_path / "train")
        (tmp_path / "test").mkdir()
        Image.new("L", (8, 8)).save(tmp_path / "test" / "a.png")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        for split, labels in (("train", [0, 1] * 10), ("test", [-1] * 4)):
            rows = {"image": [b""] * len(labels), "label": labels}
            parquet.write_table(pyarrow.table(rows), tmp_path / f"{split}.parquet")
    assert set(find_splits(tmp_path)) == {"training"}


def test_images_of_any_size_become_those_of_the_model(tmp_path):
    splits = load(write_folder(tmp_path, side=20), size=8)
    assert splits["test"].__getitems__([0, 1])[0].shape == (2, 3, 8, 8)
    # 20 x 22, larger than 8: the centre of 0.875 * 20 = 17.5 pixels, without the white corner.
    pixels = splits["test"].standard.undo(splits["test"].__getitems__([4])[0]) * 255
    assert float(pixels.max()) == pytest.approx(pixel(0, 4), abs=0.01)


def test_errors_name_the_file(tmp_path):
    folder = write_folder(tmp_path / "set")
    (folder / "train" / "ant" / "000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train/ant/000.png is no image that can be decoded"):
        load(folder)
    (folder / "test" / "dog").mkdir()
    Image.new("L", (8, 8)).save(folder / "test" / "dog" / "a.png")
    with pytest.raises(ValueError, match=r"dog/a.png is of class 'dog', which the training"):
        find_splits(folder)
    with pytest.raises(ValueError, match=r"labels up to 1: model.num_classes must be at least 2"):
        load(write_idx(tmp_path / "idx", False), channels=1, num_classes=1)
    with pytest.raises(ValueError, match=r"images of 3 channels, and model.num_channels=1"):
        load(write_cifar(tmp_path / "cifar", "binary", False), channels=1)
    with pytest.raises(ValueError, match="is no image set; it needs train/CLASS"):
        find_splits(tmp_path)
    with pytest.raises(ValueError, match="no image set or folder is called 'fashion-mnits'; the"):
        load("fashion-mnits")


def test_damaged_arrays_are_named(tmp_path):
    path = write_idx(tmp_path / "idx", False) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"images-idx3-ubyte is damaged: sizes \(20, 8, 8\) need"):
        find_splits(path.parent)
    path = write_cifar(tmp_path / "cifar", "binary", False) / "data_batch_3.bin"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"data_batch_3.bin is damaged: 61461 bytes are no rows"):
        find_splits(path.parent)
    (path.parent / "test_batch.bin").unlink()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_pickle_may_hold_arrays_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_cifar(tmp_path / "cifar", "python", True)
    (folder / "test").write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    with pytest.raises(ValueError, match=r"cifar/test is no batch of CIFAR: it asks for posix"):
        find_splits(folder)
    assert not (tmp_path / "evil").exists()
