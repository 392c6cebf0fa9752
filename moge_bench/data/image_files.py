"""Local image data: what a folder holds, told by the names in it, as labelled splits.

* a folder per class in ``train`` and, if they are there, ``val`` (or ``valid``, ``validation``) and
  ``test``: PNG, JPEG and what else Pillow reads, at any depth below the class; Tiny-ImageNet's
  ``val_annotations.txt`` is read;
* nothing but a folder per class, with the images in it: all of them are training images;
* the idx files of MNIST and Fashion-MNIST, gzip or not;
* CIFAR-10 and CIFAR-100, the binary or the Python version;
* parquet files ``train*``, ``validation*`` or ``val*``, ``test*``, with columns image and label.

A test split without labels, as those of ImageNet and Tiny-ImageNet are, is left out: its images lie
in no folder of a class, or all labels are -1. Folders whose name starts with a dot are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moge_bench.data.image_arrays import find_arrays
from moge_bench.data.image_sources import SPLITS, EncodedSource, FileSource, Labelled

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_NAMES = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
_ANNOTATIONS = "val_annotations.txt"
_LABELS = ("label", "fine_label", "labels")
_IMAGES = ("image", "img", "images")

FORMS = (
    "train/CLASS/*.png (and val, test), CLASS/*.png, the idx files of MNIST, the batches of CIFAR, "
    "or train*.parquet"
)


def find_splits(folder: Path) -> dict[str, Labelled]:
    """Return the splits that ``folder`` holds: "training", and "validation" and "test" if there.

    Nothing is decoded yet. Raises ValueError, naming file or folder, for a folder of no known
    form or a class that the training images do not have.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: data.name must be the folder of an image set")
    arrays = find_arrays(folder)
    if arrays is not None:
        return arrays
    tables = {split: _tables(folder, split) for split in SPLITS}
    if tables["training"]:
        read = {split: _read_tables(files, split) for split, files in tables.items() if files}
        return {split: it for split, it in read.items() if it is not None}
    found = {split: _subfolder(folder, split) for split in SPLITS}
    training = found["training"]
    if training is None:
        if not _holds_classes(folder):
            raise ValueError(f"{folder} is no image set; it needs {FORMS}")
        return {"training": _read_folder(folder, _classes(folder))}
    if found["test"] is not None and _is_unlabelled(found["test"]):
        found["test"] = None
    classes = _classes(training)
    return {split: _read_folder(path, classes) for split, path in found.items() if path is not None}


def image_set_files(folder: Path) -> list[Path]:
    """Return every file that ``find_splits`` and the sources read of ``folder``, sorted."""
    found: set[Path] = set()
    for labelled in find_splits(folder).values():
        source = labelled.source
        if isinstance(source, FileSource):
            found.update(source.paths)
            beside = Path(labelled.where) / _ANNOTATIONS
            found.update([beside] if beside.is_file() else [])
        else:
            found.update(Path(name) for name in labelled.where.split(", "))
    return sorted(found)


def _subfolder(folder: Path, split: str) -> Path | None:
    for name in _NAMES[split]:
        if (folder / name).is_dir():
            return folder / name
    return None


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Return the images in ``folder`` itself."""
    return [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]


def _holds_classes(folder: Path) -> bool:
    """Say whether every folder in ``folder`` holds images, and there are some."""
    folders = _folders(folder)
    return bool(folders) and all(_images(each) for each in folders)


def _is_unlabelled(test: Path) -> bool:
    """Say whether the images lie in ``test`` itself, or in its one folder, "images"."""
    if (test / _ANNOTATIONS).is_file():
        return False
    folders = _folders(test)
    return [f.name for f in folders] == ["images"] or (not folders and bool(_images(test)))


def _classes(training: Path) -> list[str]:
    classes = [path.name for path in _folders(training)]
    if len(classes) < 2:
        raise ValueError(f"{training} must have a folder per class, at least 2, got {len(classes)}")
    return classes


def _read_folder(folder: Path, classes: list[str]) -> Labelled:
    paths: list[Path] = []
    labels: list[int] = []
    for path, name in _annotated(folder) if (folder / _ANNOTATIONS).is_file() else _nested(folder):
        if name not in classes:
            raise ValueError(f"{path} is of class {name!r}, which the training images do not have")
        paths.append(path)
        labels.append(classes.index(name))
    if not paths:
        raise ValueError(f"{folder} has no image in a folder of a class: {', '.join(SUFFIXES)}")
    empty = {path.name for path in _folders(folder) if path.name in classes}
    empty -= {classes[label] for label in labels}
    if empty and not (folder / _ANNOTATIONS).is_file():
        raise ValueError(
            f"{folder / min(empty)} has no image: a class must have some ({', '.join(SUFFIXES)})"
        )
    return Labelled(FileSource(paths), labels, str(folder))


def _nested(folder: Path) -> Iterator[tuple[Path, str]]:
    for group in _folders(folder):
        for path in sorted(group.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path, group.name


def _annotated(folder: Path) -> Iterator[tuple[Path, str]]:
    """Tiny-ImageNet: a line of ``val_annotations.txt`` is a file below images and its class."""
    file = folder / _ANNOTATIONS
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise ValueError(f"{file}, line {number} must be a file and its class, got {line!r}")
        path = folder / "images" / fields[0]
        if not path.is_file():
            raise ValueError(f"{file}, line {number} names {path}, which is not there")
        yield path, fields[1]


def _tables(folder: Path, split: str) -> list[Path]:
    return sorted(
        path
        for path in folder.glob("*.parquet")
        if any(path.name.startswith(name) for name in _NAMES[split])
    )


def _read_tables(files: list[Path], split: str) -> Labelled | None:
    """Return the rows of the parquet ``files``; None of a test split without labels."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ValueError(f"{files[0]} needs the package pyarrow: pip install pyarrow") from None
    where = ", ".join(map(str, files))
    try:
        table = pyarrow.concat_tables(parquet.read_table(file) for file in files)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{where} cannot be read as parquet: {error}") from None
    columns = []
    for names in (_IMAGES, _LABELS):
        known = [name for name in names if name in table.column_names]
        if not known:
            raise ValueError(
                f"{where} must have a column {' or '.join(names)}, got "
                f"{', '.join(table.column_names)}"
            )
        columns.append(table.column(known[0]))
    images, labels = columns
    numbers = labels.to_pylist()
    if split == "test" and numbers and all(label == -1 for label in numbers):
        return None
    for row, label in enumerate(numbers):
        if not isinstance(label, int) or label < 0:
            raise ValueError(
                f"{where}, row {row}: a label must be an integer from 0, got {label!r}"
            )
    return Labelled(EncodedSource(_Rows(images), len(numbers), where), numbers, where)


class _Rows:
    """The rows of an arrow column, one at a time as Python values."""

    def __init__(self, column: object) -> None:
        self._column = column

    def __call__(self, index: int) -> object:
        return self._column[index].as_py()  # type: ignore[index]
