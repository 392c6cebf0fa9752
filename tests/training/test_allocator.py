import os
import subprocess
import sys

import pytest

# Faults of taking, touching and freeing four blocks of 24 MiB, four times.
PROGRAM = """
import resource, torch
from moge_bench.training.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def step():
    blocks = [torch.empty(3 * 2**21).fill_(1.0) for _ in range(4)]
for _ in range(4):  # until the heap has its size
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


# glibc moves its thresholds with what it sees; fixed at their initial values they are repeatable.
INITIAL = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def faults(keep):
    program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.check_output(program, text=True, env={**os.environ, **INITIAL}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_not_mapped_again():
    # 4 times 96 MiB are 98,304 pages of 4 KiB, or 192 of 2 MiB where the system gives those.
    without, kept = faults(False), faults(True)
    assert kept < 16
    assert without >= 128
