import subprocess
import sys

import pytest

# Faults of taking, touching and freeing 64 MiB four more times: by default malloc maps each anew.
PROGRAM = """
import resource, torch
from moge_bench.training.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
torch.empty(2**24).fill_(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.empty(2**24).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    program = PROGRAM.format(keep=keep)
    return int(subprocess.check_output([sys.executable, "-c", program], text=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_not_mapped_again():
    # 4 times 64 MiB are 65,536 pages of 4 KiB, or 128 of 2 MiB where the system gives those.
    without, kept = faults(False), faults(True)
    assert kept < 16
    assert without >= 128
