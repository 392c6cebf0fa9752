"""The CPU's tests on a GPU (`-m gpu`): inputs are drawn on the CPU as ever, then moved.

Where MOGE_EMULATED names the library of tests/tools/simt/test_simt_binding.py, the device is the
CPU and the CUDA binding runs there, its kernels emulated: the same tests then need no GPU. So do
those of the products where TRITON_INTERPRET=1 has Triton run its kernels on the CPU, which is for
tests/ops/test_grouped_product.py to set.
"""

import os
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from moge_bench.ops import extension, grouped_product

EMULATED = os.environ.get("MOGE_EMULATED")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if EMULATED:
    torch.ops.load_library(EMULATED)  # its kernels take the place of the CPU's, in this process
elif INTERPRETED:
    from triton.runtime import interpreter

    grouped_product.LIBRARY.impl("grouped_product", grouped_product.grouped_product, "CPU")
    grouped_product.LIBRARY.impl("grouped_outer", grouped_product.grouped_outer, "CPU")
    dot = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        """It multiplies the bits of bfloat16 as integers; they are the upper half of a float32."""
        if handle.dtype.scalar.is_bf16():
            values = (handle.data.astype("uint32") << 16).view("float32")
            return interpreter.TensorHandle(values, interpreter.tl.float32)
        return handle

    def create_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot

FACTORIES = {
    torch.arange, torch.empty, torch.full, torch.ones, torch.rand, torch.randint, torch.randn,
    torch.randperm, torch.tensor, torch.zeros,
}  # fmt: skip


def why_not(path: Path) -> str | None:
    """Return why the kernels that the tests of a file need cannot run here, or None if they can."""
    products = path.name == "test_products_on_device.py"
    if INTERPRETED or EMULATED:
        if products == (not EMULATED):
            return None
        return "Triton's kernels run on a GPU, or by tests/ops/test_grouped_product.py"
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
    mine = [item for item in items if Path(__file__).parent in item.path.parents]
    left_out = {item for item in mine if is_left_out(item)}
    items[:] = [item for item in items if item not in left_out]
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        reason = why_not(item.path)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device():
    return "cpu" if EMULATED or INTERPRETED else "cuda"


@pytest.fixture
def backend():
    """What the CPU's tests ask for: here the extension is the one backend of interest."""
    return "extension"


@pytest.fixture(autouse=True)
def _on_device(device):
    torch.manual_seed(0)
    with OnDevice(device):
        yield
