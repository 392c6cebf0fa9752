"""Auxiliary-loss-free balancing (DeepSeek-V3, arXiv 2412.19437): the step of the selection bias.

A router only counts in its forward pass. The bias moves here, once an optimiser step. Legend: N
experts.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from moge_bench.routing.global_batch import has_ranks
from moge_bench.routing.router import TopographicRouter


@torch.no_grad()
def update_selection_bias(
    module: nn.Module, *, process_group: dist.ProcessGroup | None = None
) -> None:
    """Move the selection bias of every router in ``module``, and start its counts anew.

    bias_e <- bias_e + rate * sign(mean load - load_e), by the tokens that were routed in training
    since the last call, those of all ranks. Call it once an optimiser step, after it, however many
    micro-batches the step had, and on every rank: the counts are summed over ``process_group``
    (None: all ranks) where torch.distributed is initialised, so the bias is equal on all of them.
    A router that counted nothing keeps its bias.

    Raises ValueError if ``module`` has no router with bias_update_rate > 0.
    """
    routers = [
        child
        for child in module.modules()
        if isinstance(child, TopographicRouter) and child.bias_update_rate
    ]
    if not routers:
        raise ValueError(
            f"module must have a TopographicRouter with bias_update_rate > 0, "
            f"{type(module).__name__} has none: nothing would be updated"
        )
    for router in routers:
        load = router.take_load_counts()
        if has_ranks():
            dist.all_reduce(load, group=process_group)
        router.move_selection_bias(load)
