"""Several ranks of torch.distributed (gloo) in processes of a test."""

import io
import multiprocessing
import os
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def run_ranks(count, body, *args):
    """Return what body(*args) returned in each of ``count`` ranks, in their order.

    ``body`` is a function of a module. A rank that raises fails the test with its traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moge_bench.training.loop"])
    with tempfile.TemporaryDirectory() as folder:
        connections = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(target=_rank, args=(rank, count, folder, sender, body, args))
            for rank, (_, sender) in enumerate(connections)
        ]
        for process in processes:
            process.start()
        for _, sender in connections:
            sender.close()
        results = [_receive(receiver) for receiver, _ in connections]
        for process in processes:
            process.join()
    raised = [text for ok, text in results if not ok]
    assert not raised, "\n".join(raised)
    return [value for _, value in results]


def _receive(receiver):
    try:
        return torch.load(io.BytesIO(receiver.recv_bytes()), weights_only=False)
    except EOFError:
        return False, "a rank ended without a word"


def _send(sender, ok, value):
    # As bytes: multiprocessing would share the tensors' memory with a process that has ended.
    buffer = io.BytesIO()
    torch.save((ok, value), buffer)
    sender.send_bytes(buffer.getvalue())


def _rank(rank, count, folder, sender, body, args):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{Path(folder) / 'meeting'}", rank=rank, world_size=count,
            timeout=timedelta(seconds=300),
        )  # fmt: skip
        _send(sender, True, body(*args))
        dist.destroy_process_group()
    except Exception:
        _send(sender, False, traceback.format_exc())
