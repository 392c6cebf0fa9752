"""The device that a run or a benchmark asks for."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Check that ``device`` ("cpu", "cuda", "cuda:1") can be used here; ValueError says why not."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"device must be cpu or a torch device like cuda:0, got {device!r}"
        ) from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={device!r} needs a GPU and a CUDA build of torch; torch {torch.__version__} "
            "sees no GPU here; set device=cpu"
        )
