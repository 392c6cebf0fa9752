import pytest
import torch

from moge_bench.presets import resolve
from moge_bench.training.tasks import make_task


@pytest.fixture(scope="module")
def images():
    return make_task(resolve("tiny-vit"))


def test_order_depends_on_the_seed_alone(images):
    def first_labels(seed):
        torch.manual_seed(torch.seed())  # the global generator must not matter
        return next(iter(images.loader(64, seed)))[1]

    assert torch.equal(first_labels(3), first_labels(3))
    assert not torch.equal(first_labels(3), first_labels(4))


def test_an_epoch_sees_every_example_once(images):
    labels = torch.cat([labels for _, labels in images.loader(1000, 0)])
    assert torch.bincount(labels).tolist() == [900] * 10


def test_batch_larger_than_the_data(images):
    with pytest.raises(ValueError, match="batch_size must be at most 9000 examples, got 9001"):
        images.loader(9001, 0)


def test_augmentation_is_the_same_for_every_method_and_resumes():
    tasks = [make_task(resolve("tiny-vit", method)) for method in ("dense", "moge")]
    loaders = [task.loader(8, seed=3) for task in tasks]
    first, second = (next(iter(loader))[0] for loader in loaders)
    assert torch.equal(first, second)
    assert not torch.equal(first, next(iter(tasks[0].loader(8, seed=4)))[0])
