"""Small image sets on disk, in every form that is read. Pixels tell the image: see ``pixel``."""

import gzip
import pickle
import struct

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")


def pixel(label, number):
    """Return the grey value of image ``number`` of class ``label``."""
    return 60 * label + 3 * number


def write_folder(root, per_class=10, side=8, suffix=".png", splits=("train", "val", "test")):
    """Write a folder per class and split of uniform RGB images; PNG keeps their values."""
    for split in splits:
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                value = np.full((side, side + 2, 3), pixel(label, number), np.uint8)
                value[0, 0] = 255  # so that no channel is constant
                Image.fromarray(value).save(root / split / name / f"{number:03}{suffix}")
    return root


def write_idx(root, zipped, count=20):
    """Write the four files of MNIST, ``count`` images of 8 x 8 of two classes in each split."""
    root.mkdir(parents=True, exist_ok=True)
    labels = np.arange(count, dtype=np.uint8) % 2
    images = np.zeros((count, 8, 8), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None]
    for prefix in ("train", "t10k"):
        for kind, array in (("images", images), ("labels", labels)):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            name = f"{prefix}-{kind}-idx{array.ndim}-ubyte"
            data = head + array.tobytes()
            if zipped:
                (root / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (root / name).write_bytes(data)
    return root


def cifar_rows(count):
    """Return labels (count,) and rows (count, 3072): red 10, green 20, blue 30; first: number."""
    rows = np.repeat(np.array([10, 20, 30], np.uint8), 1024)[None].repeat(count, 0)
    rows[:, 0] = np.arange(count)
    return np.arange(count, dtype=np.uint8) % 3, rows


def write_cifar(root, version, hundred):
    """Write CIFAR-10 or CIFAR-100, "binary" or "python", 20 images a file."""
    root.mkdir(parents=True, exist_ok=True)
    names = (
        ["train", "test"] if hundred else [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    )
    labels, rows = cifar_rows(20)
    for name in names:
        if version == "binary":
            coarse = [np.zeros((20, 1), np.uint8)] if hundred else []
            table = np.concatenate([*coarse, labels[:, None], rows], axis=1)
            (root / f"{name}.bin").write_bytes(table.tobytes())
        else:
            key = b"fine_labels" if hundred else b"labels"
            batch = {b"data": rows, key: labels.tolist(), b"batch_label": b"x"}
            (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    return root
