"""From a config to its task: the only place that knows every kind of data."""

from __future__ import annotations

from collections.abc import Iterable

from moge_bench.config import RunConfig, TextDataConfig
from moge_bench.training.image_task import ImageTask
from moge_bench.training.task import Task
from moge_bench.training.text_task import TextTask


def make_task(config: RunConfig) -> Task:
    """Load the data of ``config`` and return its task."""
    if isinstance(config.data, TextDataConfig):
        return TextTask(config, config.data)
    return ImageTask(config, config.data)


def check_tasks(configs: Iterable[RunConfig]) -> None:
    """Check that the data of every config give a full batch; ValueError names the setting.

    Configs that agree on data, model and batch are checked once.
    """
    seen = set()
    for config in configs:
        training = config.training
        size = training.batch_size // training.gradient_accumulation
        key = (config.data.model_dump_json(), config.model.structure, size)
        if key not in seen:
            seen.add(key)
            make_task(config).loader(size, config.seed)
