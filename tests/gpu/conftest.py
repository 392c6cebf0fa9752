"""The CPU's tests on a GPU (`-m gpu`): inputs are drawn on the CPU as ever, then moved.

Where MOGE_EMULATED names the library of tests/tools/simt/test_simt_binding.py, the device is the
CPU and the CUDA binding runs there, its kernels emulated: the same tests then need no GPU.
"""

import os
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from moge_bench.ops import extension

EMULATED = os.environ.get("MOGE_EMULATED")
if EMULATED:
    torch.ops.load_library(EMULATED)  # its kernels take the place of the CPU's, in this process

FACTORIES = {
    torch.arange, torch.empty, torch.full, torch.ones, torch.rand, torch.randint, torch.randn,
    torch.randperm, torch.tensor, torch.zeros,
}  # fmt: skip


def why_not() -> str | None:
    """Return why the CUDA kernels cannot run here, or None if they can."""
    if EMULATED:
        return None
    module, error = extension.load_cuda()
    if module is None:
        return f"the CUDA library is not built: {error}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    return None if torch.cuda.is_available() else "torch sees no GPU"


class OnDevice(TorchFunctionMode):
    """Moves what the factories make to ``device`` unless they are told another."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in FACTORIES or "device" in kwargs:
            return func(*args, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        return func(*args, **kwargs).to(self.device).requires_grad_(requires_grad)


def is_left_out(item) -> bool:
    """Cases in float64, which is the reference's on CUDA; and large ones where it is emulated."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    large = EMULATED and params.get("num_tokens", 0) > 2000
    return params.get("dtype") == torch.float64 or large


def pytest_collection_modifyitems(items):
    """Mark everything here `gpu`, and skip it with the reason where it cannot run."""
    reason = why_not()
    mine = [item for item in items if Path(__file__).parent in item.path.parents]
    left_out = {item for item in mine if is_left_out(item)}
    items[:] = [item for item in items if item not in left_out]
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device():
    return "cpu" if EMULATED else "cuda"


@pytest.fixture
def backend():
    """What the CPU's tests ask for: here the extension is the one backend of interest."""
    return "extension"


@pytest.fixture(autouse=True)
def _on_device(device):
    torch.manual_seed(0)
    with OnDevice(device):
        yield
