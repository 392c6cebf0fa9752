"""What training sets for the whole process, and how the process is given back as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from moge_bench.routing.global_batch import has_ranks
from moge_bench.training.device import exact_float32


@contextmanager
def left_as_found() -> Iterator[None]:
    """Restore the number of threads and torch's random generators, on the devices too, at the end.

    After an exception too. What else training sets for the whole process: ``reproducible``,
    ``AccelerateState`` and ``allocator.freed_memory_kept``.
    """
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def peers_left_as_found() -> Iterator[None]:
    """Leave the other ranks at the end, if they were joined in the body."""
    found = has_ranks()
    try:
        yield
    finally:
        if has_ranks() and not found:
            dist.destroy_process_group()


@contextmanager
def reproducible() -> Iterator[None]:
    """Let torch refuse, in the body, what would not give the same bits twice; float32 is exact."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        torch.use_deterministic_algorithms(True)
        # Else determinism writes NaN into every empty tensor first: 7 % of a step of tiny-lm.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        with exact_float32():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


class AccelerateState:
    """accelerate's state for one trainer.

    accelerate keeps precision, accumulation and loaders in class attributes that all its objects
    of a process share: a second ``Accelerator`` of another precision is refused, and one with
    another ``gradient_accumulation`` changes the first one's. Here each trainer has its own, put
    in force while it works. What the process knows of its device and peers is taken over.
    """

    def __init__(self) -> None:
        self._own: dict[Any, Any] = {
            PartialState: dict(PartialState._shared_state), AcceleratorState: {}, GradientState: {},
        }  # fmt: skip

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Give accelerate this state for the body, and then the one it had."""
        # vars(): on TPUs the attribute is a descriptor, to be put back itself.
        found = {kind: vars(kind)["_shared_state"] for kind in self._own}
        try:
            for kind, state in self._own.items():
                kind._shared_state = state
            yield
        finally:
            for kind, state in found.items():
                kind._shared_state = state
