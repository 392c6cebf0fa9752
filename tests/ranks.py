"""Two ranks of a gloo group on this machine, for tests of what several processes compute."""

import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.multiprocessing import start_processes


def run_ranks(function, folder):
    """Run ``function(rank, folder)`` on ranks 0 and 1; ``folder`` is where they leave results.

    Forked, they need no imports of their own, which take longer than any of these tests; beside a
    GPU, which does not survive a fork, they are spawned.
    """
    start = "spawn" if torch.cuda.is_available() else "fork"
    start_processes(_rank, args=(function, folder), nprocs=2, start_method=start)


def _rank(rank, function, folder):
    torch.set_num_threads(1)
    init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/store")
    try:
        function(rank, folder)
    finally:
        destroy_process_group()
