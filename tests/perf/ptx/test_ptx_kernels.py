"""The PTX of csrc/cuda for three architectures, interpreted, against the float64 reference.

Where nvcc is: the cases of the emulator's tests, fewer and smaller. The interpreter's checks
(races, bounds, unwritten memory, barriers) are on; a finding fails the case.
"""

import pytest
from ptx_kernels import Kernels

from moge_bench.perf.gpu.toolchain import find_nvcc

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed: no PTX to run")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def kernels(request):
    return Kernels(request.param)
