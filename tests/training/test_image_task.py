"""Training on local images, with everything that is drawn, is exact when it is resumed."""

import pytest
import torch
from image_samples import write_folder

from moge_bench.presets import resolve
from moge_bench.training.batches import BatchStream
from moge_bench.training.loop import train
from moge_bench.training.tasks import make_task

DRAWN = {"data.flip": True, "data.crop_padding": 1, "data.resized_crop": 0.5, "data.mixup": 0.8,
         "data.rand_augment": 9, "data.cutmix": 1.0, "data.erasing": 0.25}  # fmt: skip
SMALL = {"model.image_size": 8, "model.patch_size": 2, "model.num_channels": 3, "data.workers": 0,
         "model.num_classes": 3, "model.window_size": 2, "moe.num_experts": 9, "training.steps": 4,
         "training.batch_size": 8, "training.warmup_steps": 1, "training.gradient_accumulation": 2,
         "data.evaluate_test": True}  # fmt: skip


def config(folder, method="moge", **settings):
    given = {**SMALL, **DRAWN, "data.name": str(folder), "data.mean": [0.5], "data.std": [0.25]}
    return resolve("tiny-swin", method, {**given, **settings})


def stream(settings):
    loader = make_task(settings).loader(4, settings.seed)
    return BatchStream(loader, loader.generator, 2)


@pytest.mark.parametrize("shipped", [False, True])
def test_a_stream_goes_on_where_it_was(tmp_path, shipped):
    if shipped:
        settings = resolve("tiny-vit", "moge", DRAWN)
    else:
        settings = config(write_folder(tmp_path, splits=("train", "test")))
    whole = stream(settings)
    for _ in range(2 if shipped else 4):  # 27 images, 4 a batch: into the second epoch
        whole.next_step()
    state = whole.state()
    expected = whole.next_step()
    other = stream(settings)
    other.next_step()
    other.restore(state)
    for (images, targets), (found, shares) in zip(expected, other.next_step(), strict=True):
        assert torch.equal(images, found) and torch.equal(targets, shares)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_every_method_of_a_seed_sees_the_same_batches(tmp_path):
    folder = write_folder(tmp_path, splits=("train", "test"))
    (moge, moe), (dense, _) = (stream(config(folder, m)).next_step() for m in ("moge", "dense"))
    assert torch.equal(moge[0], dense[0]) and torch.equal(moge[1], dense[1])
    assert not torch.equal(moge[0], moe[0])


@pytest.mark.parametrize("preset", ["tiny-swin", "tiny-swinv2"])
def test_a_run_on_a_folder_of_images(tmp_path, preset):
    folder = write_folder(tmp_path / "images")
    settings = {**SMALL, **DRAWN, "data.name": str(folder), "data.mean": [0.5], "data.std": [0.25]}
    found = train(resolve(preset, "moge", settings), probe=tmp_path / "probe.safetensors")
    assert found.backends["route"] == "extension"
    accuracy = {m.split: m.value for m in found.metrics if m.name == "top1_accuracy"}
    assert accuracy.keys() == {"validation", "test"}
    # 30 images of 4 * 4 tokens in the first stage, 2 * 2 in the second; one choice each.
    loads = {r["block"]: sum(r["load"]) for r in found.routing if r["split"] == "test"}
    assert loads == {1: 30 * 16, 3: 30 * 4}


def test_shipped_images_of_another_size_than_the_models():
    wrong = resolve("tiny-vit", "moe", {"model.image_size": 32, "model.patch_size": 8})
    with pytest.raises(ValueError, match=r"images of \(1, 28, 28\), and the model takes .*32, 32"):
        make_task(wrong)


def test_shipped_images_of_more_classes_than_the_models():
    with pytest.raises(ValueError, match=r"labels up to 9: model\.num_classes must be at least 10"):
        make_task(resolve("tiny-vit", "moe", {"model.num_classes": 9}))
