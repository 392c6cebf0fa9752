"""From a config to its task: the only place that knows every kind of data."""

from __future__ import annotations

from moge_bench.config import RunConfig, TextDataConfig
from moge_bench.training.image_task import ImageTask
from moge_bench.training.task import Task
from moge_bench.training.text_task import TextTask


def make_task(config: RunConfig) -> Task:
    """Load the data of ``config`` and return its task."""
    if isinstance(config.data, TextDataConfig):
        return TextTask(config, config.data)
    return ImageTask(config, config.data)
