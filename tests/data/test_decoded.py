"""Decoded splits in a DataLoader: the same batches in any number of workers."""

import os
import sys
import types

import pytest
import torch
from image_samples import write_folder

from moge_bench.config import ImageDataConfig
from moge_bench.data import pixel_figures, registry
from moge_bench.data.decoded import SeededBatches, TrainingSplit
from moge_bench.data.image_files import find_splits
from moge_bench.data.images import load_decoded
from moge_bench.data.registry import find_data
from moge_bench.presets import resolve
from moge_bench.system import digest_files
from moge_bench.training.batches import BatchStream

AUGMENTED = {"resized_crop": 0.3, "flip": True, "rand_augment": 9, "mixup": 0.8, "cutmix": 1.0,
             "erasing": 0.25, "mean": [0.5], "std": [0.25]}  # fmt: skip


def batches(folder, workers, seed=0, epochs=1):
    data = ImageDataConfig(name=str(folder), workers=workers, **AUGMENTED)
    split = load_decoded(data, 8, 3, 3)["training"]
    loader = TrainingSplit(split, data, 3).loader(4, seed, pin_memory=False)
    return [batch for _ in range(epochs) for batch in loader]


def equal(first, second):
    return all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )


def test_batches_depend_on_the_seed_alone(tmp_path):
    folder = write_folder(tmp_path, splits=("train", "test"))
    first = batches(folder, 0, epochs=2)
    assert len(first) == 2 * (27 // 4)
    assert first[0][0].shape == (4, 3, 8, 8) and first[0][1].shape == (4, 3)
    assert equal(first, batches(folder, 2, epochs=2))
    assert not equal(first, batches(folder, 0, seed=1, epochs=2))
    assert not equal(first[:6], first[6:])


def test_every_image_comes_once_an_epoch_with_a_seed_of_its_own():
    keys = [key for batch in SeededBatches(12, 3, torch.Generator()) for key in batch]
    assert sorted(index for index, _ in keys) == list(range(12))
    assert len({seed for _, seed in keys}) == 12


def test_a_set_of_the_hub(monkeypatch):
    """The package `datasets` is stood in for: a table gives rows, or a whole column."""

    class Table(list):
        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

        def cast_column(self, name, kind):
            assert (name, kind) == ("img", "not decoded")
            return self

    import io

    from PIL import Image

    def row(value, label):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
        return {"img": {"bytes": file.getvalue()}, "label": label}

    package = types.ModuleType("datasets")
    asked = []

    def load_dataset(path):
        asked.append(path)
        return {
            "train": Table(row(i, i % 2) for i in range(20)),
            "test": Table([row(9, 1)]),
            "validation": Table([row(9, -1)]),  # without labels
        }

    package.load_dataset, package.Image = load_dataset, lambda decode: "not decoded"
    monkeypatch.setitem(sys.modules, "datasets", package)
    splits = load_decoded(ImageDataConfig(name="cifar-10", workers=0), 8, 3, 2)
    assert asked == ["uoft-cs/cifar10"]
    assert {name: len(s) for name, s in splits.items()} == {
        "training": 18, "validation": 2, "test": 1
    }  # fmt: skip
    assert splits["test"].standard.mean == (0.4914, 0.4822, 0.4465)
    assert (splits["training"].pixels([3])[0][0] * 255).round().unique().tolist() == [3]

    def offline(path):
        raise ConnectionError("no route")

    package.load_dataset = offline
    with pytest.raises(ValueError, match=r"could not be loaded from the hub .*no route.*offline"):
        load_decoded(ImageDataConfig(name="cifar-10"), 8, 3, 2)


def find(folder):
    settings = {"data.name": str(folder), "model.image_size": 8, "model.patch_size": 4,
                "model.num_channels": 3, "model.stem": "patch"}  # fmt: skip
    return find_data(resolve("tiny-vit", "moe", settings))


def test_local_images_have_a_digest_and_the_figures_of_their_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "set", per_class=2)
    config = find(folder)
    assert len(config.data.mean) == 3 and len(config.data.digest) == 16
    assert len(list((tmp_path / "cache").rglob("pixels-*.json"))) == 1
    (folder / "README.md").write_text("beside it")
    assert find(folder).run_id == config.run_id
    (folder / "test" / "bee" / "001.png").unlink()
    assert find(folder).run_id != config.run_id
    workers = config.model_copy(update={"data": config.data.model_copy(update={"workers": 3})})
    assert workers.run_id == config.run_id


def test_figures_of_many_images_come_from_many_processes(tmp_path, monkeypatch):
    found = find_splits(write_folder(tmp_path, per_class=20))["training"]
    alone = pixel_figures.measure(found, 3)
    monkeypatch.setattr(pixel_figures, "_FEW", 10)
    monkeypatch.setattr(pixel_figures, "available_cores", lambda: 2)
    assert pixel_figures.measure(found, 3) == alone
    values = torch.stack([found.source.read(i, 3) for i in range(60)]).double() / 255
    by_channel = values.movedim(1, 0).flatten(1)
    assert alone.mean == pytest.approx(by_channel.mean(1).tolist(), abs=6e-5)
    assert alone.std == pytest.approx(by_channel.std(1, correction=0).tolist(), abs=6e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_and_nothing_else(tmp_path, workers):
    folder = write_folder(tmp_path, per_class=4)
    broken = folder / "val/bee/001.png"
    broken.write_bytes(b"no image")
    data = ImageDataConfig(name=str(folder), mean=(0.5,), std=(0.5,), workers=workers)
    split = load_decoded(data, 8, 3, 3)["validation"]
    with pytest.raises(ValueError) as caught:
        list(split.batches(2))
    assert str(broken) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    # In training too, where the loader is the loop's.
    (folder / "train/ant/000.png").write_bytes(b"no image")
    training = TrainingSplit(load_decoded(data, 8, 3, 3)["training"], data, 3)
    loader = training.loader(12, 0, pin_memory=False)
    with pytest.raises(ValueError) as caught:
        BatchStream(loader, loader.generator, 1).next_step()
    assert "train/ant/000.png" in str(caught.value) and "Traceback" not in str(caught.value)


def test_much_data_are_hashed_once_unless_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_MUCH", 0)
    hashed = []
    monkeypatch.setattr(
        registry, "digest_files", lambda files, root: hashed.append(1) or digest_files(files, root)
    )
    folder = write_folder(tmp_path / "set", per_class=2)
    names = set()
    for change in (None, None, (folder / "test/bee/001.png")):
        registry._digest.cache_clear()  # as in another process
        if change is not None:
            os.utime(change, (1, 1))
        names.add(find(folder).data.digest)
    assert (len(hashed), len(names)) == (2, 1)


def test_a_resumed_epoch_decodes_nothing_that_was_seen(tmp_path, monkeypatch):
    data = ImageDataConfig(name=str(write_folder(tmp_path)), workers=0, **AUGMENTED)
    training = TrainingSplit(load_decoded(data, 8, 3, 3)["training"], data, 3)

    def stream():
        loader = training.loader(4, 0, pin_memory=False)
        return BatchStream(loader, loader.generator, 1)

    whole = stream()
    seen = [whole.next_step()[0] for _ in range(12)]  # 30 images: 7 batches an epoch
    read = []
    pixels = type(training.split).pixels
    monkeypatch.setattr(
        type(training.split), "pixels", lambda self, i: read.append(len(i)) or pixels(self, i)
    )
    for taken in (3, 7, 9):
        before, after = stream(), stream()
        for _ in range(taken):
            before.next_step()
        read.clear()
        after.restore(before.state())
        found = [after.next_step()[0] for _ in range(12 - taken)]
        assert equal(found, seen[taken:])
        assert read == [4] * (12 - taken)
