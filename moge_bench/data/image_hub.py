"""Image sets that come through the package ``datasets``, from the hub or its local cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moge_bench.data.decoded import Standard
from moge_bench.data.image_sources import EncodedSource, Labelled


@dataclass(frozen=True)
class HubSet:
    """A set of the hub: where it is, its columns, and mean and deviation of a training pixel."""

    path: str
    image: str
    label: str
    standard: Standard


_IMAGENET = Standard((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HUB = {
    "fashion-mnist": HubSet(
        "zalando-datasets/fashion_mnist", "image", "label", Standard((0.2860,), (0.3530,))
    ),
    "cifar-10": HubSet(
        "uoft-cs/cifar10", "img", "label",
        Standard((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar-100": HubSet(
        "uoft-cs/cifar100", "img", "fine_label",
        Standard((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
    "tiny-imagenet": HubSet("zh-plus/tiny-imagenet", "image", "label", _IMAGENET),
    "imagenet-1k": HubSet("ILSVRC/imagenet-1k", "image", "label", _IMAGENET),
}  # fmt: skip
_SPLITS = {"training": ("train",), "validation": ("validation", "valid"), "test": ("test",)}


def load_hub(name: str) -> dict[str, Labelled]:
    """Return the splits of the set ``name`` of ``HUB``; nothing is decoded yet.

    A split without labels, as the test images of ImageNet have none, is left out. ValueError says
    what to do where the set cannot be had.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(
            f"image set {name!r} comes through the package `datasets`: pip install datasets, or "
            "give the folder of a local copy as data.name"
        ) from None
    known = HUB[name]
    try:
        loaded = datasets.load_dataset(known.path)
    except Exception as error:
        raise ValueError(
            f"image set {name!r} could not be loaded from the hub ({type(error).__name__}: "
            f"{error}); offline, give the folder of a local copy as data.name: folders train, val "
            "and test with a folder per class, the original files, or parquet"
        ) from None
    found = {}
    for split, names in _SPLITS.items():
        for hub in names:
            if hub in loaded:
                table = loaded[hub].cast_column(known.image, datasets.Image(decode=False))
                labels = list(table[known.label])
                where = f"{known.path}, split {hub}"
                if min(labels, default=-1) >= 0:
                    rows = _Rows(table, known.image)
                    found[split] = Labelled(EncodedSource(rows, len(labels), where), labels, where)
    if "training" not in found:
        raise ValueError(f"image set {name!r} has no labelled split 'train' in {known.path}")
    return found


@dataclass(frozen=True)
class _Rows:
    table: Any
    column: str

    def __call__(self, index: int) -> Any:
        return self.table[index][self.column]
