"""The device that a run or a benchmark asks for, what goes there, and its float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``tensor``, of the CPU, on ``device``; to a GPU it is copied without a wait."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep cuDNN and cuBLAS from rounding float32 to TF32 in the body.

    By default cuDNN's convolutions do, with 10 bits of mantissa: the patches of a vision model.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    try:
        found = {cudnn: cudnn.allow_tf32, matmul: matmul.allow_tf32}
        name = "allow_tf32"
    except RuntimeError:  # set by torch's other interface, after which this one refuses to answer
        found = {place: place.fp32_precision for place in (cudnn.conv, cudnn.rnn, matmul)}
        name = "fp32_precision"
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        for place, value in found.items():
            setattr(place, name, value)


def rounds_to_tf32() -> bool:
    """Return whether float32 convolutions or products are rounded to TF32 now."""
    return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
