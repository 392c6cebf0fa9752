import pytest
import torch

from moge_bench.ops import extension

BACKENDS = ["reference", "extension"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every backend; without a built extension its tests fail rather than skip."""
    if request.param == "extension":
        module, error = extension.load()
        assert module is not None, f"the extension is not built: {error}"
    return request.param
