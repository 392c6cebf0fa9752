"""The device that a run asks for."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Check that ``device``, "cpu" or "cuda", can be used here; ValueError says what is missing."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device='cuda' needs a GPU and a CUDA build of torch; torch {torch.__version__} sees "
            "no GPU here; set device=cpu"
        )
