"""Peak memory of a training step: exact live tensor bytes, from torch's own memory tracking.

On a CPU torch reports every allocation and every release of its allocator to the profiler
(``profile_memory``). Summed up in order they are the bytes that are live; the peak of that sum
within the last call is the figure. On a GPU it is the caching allocator's own peak. Memory that
torch does not allocate (Python, BLAS workspaces, code) is in the process's resident size instead.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Before the profiler starts: at its usual level it prints a line for every trace.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "moge_bench: measured call"
MIB = 2**20


def peak_tensor_bytes(setup: Callable[[], Callable[[], object]], *, warmup: int = 2) -> int:
    """Return the peak of live tensor bytes during one call of ``setup()``'s result.

    ``setup`` is called once, then what it returned ``warmup`` times, then once more, measured.
    Tensors that ``setup`` made (parameters, gradients, optimiser state, the batch) count; tensors
    that were there before do not. CPU only, and exact.
    """
    activities = [ProfilerActivity.CPU]
    with _no_collection(), profile(activities=activities, profile_memory=True) as trace:
        call = setup()
        for _ in range(warmup):
            call()
        with record_function(_MARK):
            call()
    events = trace.profiler.kineto_results.events()
    begin, end = next(
        (event.start_ns(), event.end_ns()) for event in events if event.name() == _MARK
    )
    changes = sorted(
        (event.start_ns(), index, event.nbytes())
        for index, event in enumerate(events)
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    )
    live = peak = 0
    for time_ns, _, nbytes in changes:
        if time_ns > end:
            break
        if time_ns < begin:
            live += nbytes
            peak = live
        else:
            live += nbytes
            peak = max(peak, live)
    return peak


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage before the body and not within it: its release would count as negative."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def peak_cuda_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the allocator's peak on ``device`` during ``call``."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
