"""Mean and standard deviation of the pixels of a set that nobody has measured yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from moge_bench.data.decoded import Standard, in_plain_words
from moge_bench.data.image_sources import Labelled
from moge_bench.system import available_cores

_FEW = 2000  # images for which starting processes costs more than it saves
_BATCH = 100


@dataclass(frozen=True)
class _Sums(Dataset):
    """Of each image: the number of its pixels, then their sums and sums of squares by channel."""

    labelled: Labelled
    channels: int

    def __len__(self) -> int:
        return len(self.labelled.labels)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = self.labelled.source.read(index, self.channels).flatten(1).long()
        count = torch.tensor([pixels.shape[1]])
        return torch.cat([count, pixels.sum(1), pixels.square().sum(1)])


def measure(labelled: Labelled, channels: int) -> Standard:
    """Return mean and standard deviation of all pixels, to four decimals; every image is read.

    The sums are of integers, so they are exact, however many processes read. Raises ValueError
    naming an image that cannot be read, and for a channel of one value.
    """
    sums = _Sums(labelled, channels)
    workers = available_cores() if len(sums) > _FEW else 0
    total = torch.zeros(1 + 2 * channels, dtype=torch.int64)
    # A generator of its own: to start workers must not move the process's random numbers.
    loader = DataLoader(sums, _BATCH, num_workers=workers, generator=torch.Generator())
    for batch in in_plain_words(loader):
        total += batch.sum(0)
    count, of_values, of_squares = total.double().split([1, channels, channels])
    mean = of_values / count / 255
    std = (of_squares / count / 255**2 - mean.square()).clamp_min(0).sqrt()
    if not (std > 5e-5).all():
        raise ValueError(f"{labelled.where}: every pixel of a channel is the same")
    return Standard(*(tuple(round(v, 4) for v in each.tolist()) for each in (mean, std)))
