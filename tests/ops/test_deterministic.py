"""torch.use_deterministic_algorithms(True): every op works, and twice gives the same bits."""

import pytest
import torch
from transform_cases import ON_A_GPU, PUBLIC, cpu_kernels


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    with cpu_kernels():
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", [*PUBLIC, ON_A_GPU], ids=lambda case: case.name)
def test_the_same_bits_twice(case, backend):
    results = []
    for _ in range(2):
        point = case.point.clone().requires_grad_()
        output = case.function(point, backend)
        output.sum().backward()
        results.append((output.detach(), point.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second) and first.isfinite().all()
