"""moge::count_load: add a router's load to its counts, but not while autograd recomputes.

An op, so that compiled code asks each time it runs. Legend: N experts.
"""

from __future__ import annotations

import torch


def is_recomputation() -> bool:
    """Whether this forward runs inside a backward pass, as activation checkpointing makes it.

    Autograd says which backward pass runs on this thread; torch's own FSDP and module trackers ask
    it the same. It holds for reentrant and non-reentrant checkpoints, and for those of other
    libraries. False where torch.compile traces: there recomputation is the compiler's.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


# The schema stands, for torch 2.4 reads none from annotations that are strings.
@torch.library.custom_op(
    "moge::count_load", mutates_args=("counts",), schema="(Tensor(a0!) counts, Tensor load) -> ()"
)
def count_load(counts: torch.Tensor, load: torch.Tensor) -> None:
    """Add ``load`` to ``counts``, both (N,) int64, in place; do nothing on a recomputation."""
    if not is_recomputation():
        counts.add_(load)


@count_load.register_fake
def _count_load_fake(counts: torch.Tensor, load: torch.Tensor) -> None:
    return None
