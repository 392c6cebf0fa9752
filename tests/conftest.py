import contextlib
import functools
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from moge_bench.study.grid import Grid, parse_grid

# Three steps a run: enough to be a real run, short enough to be run often.
TINY = """
name: tiny
question: Does it run?
base:
  preset: tiny-vit
  data: fashion-mnist-subset
  seeds: [0, 1]
  set:
    training.steps: 3
    training.batch_size: 16
    training.warmup_steps: 1
    moe.group.border: valid
axes:
  method: [dense, moe, moge]
  moe.num_experts: [4, 9]
  moe.group.size: [1, 2]
table:
  rows: [moe.num_experts, moe.group.size, method]
  metrics: [top1_accuracy, peak_memory_mib, tokens_per_second]
"""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what the imports made out of every later collection, of which accelerate asks for many.

    The Trainer alone does at the end of each training: with torch._dynamo imported it takes longer
    there than in the steps of a test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_command_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails while a command of its own trains would slow down all that follow."""
    yield
    if request.node.get_closest_marker("slow") is None:
        return
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "moge_bench.cli" in child.cmdline():
                for process in (*child.children(recursive=True), child):
                    process.kill()


@pytest.fixture(autouse=True)
def accelerate_set_up_by_nobody() -> Iterator[None]:
    """An Accelerator keeps its precision for the process: a test leaves none behind."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@functools.cache
def _cut(name: str) -> dict:
    from moge_bench.data.images import ImageSplit, load_images

    every = {"training": 9, "validation": 5, "test": 50}  # not the first: those lack classes
    return {
        part: ImageSplit(split.images[:: every[part]].clone(), split.labels[:: every[part]].clone())
        for part, split in load_images(name).items()
    }


@pytest.fixture(scope="module")
def few_images() -> Iterator[None]:
    """Cut the shipped images to 1,000 for training and 200 of each other split.

    Reading and evaluating all of them is most of what a run of a few steps takes.
    """
    from moge_bench.training import image_task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_task, "load_images", _cut)
        yield


@pytest.fixture
def tiny_text() -> str:
    return TINY


@pytest.fixture
def tiny_grid() -> Grid:
    return parse_grid(TINY, "tiny.yaml")


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path
