import subprocess
import sys

import pytest

# Faults of the second to fifth time that ten blocks of 16 MiB are taken, touched and freed.
PROGRAM = """
import resource, torch
from moge_bench.training.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def step():
    blocks = [torch.empty(2**22).fill_(1.0) for _ in range(10)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    program = PROGRAM.format(keep=keep)
    return int(subprocess.check_output([sys.executable, "-c", program], text=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_not_mapped_again():
    # 4 times 160 MiB are 163,840 pages of 4 KiB; huge pages, where the system gives them, fewer.
    without, kept = faults(False), faults(True)
    assert without > 10 * kept
