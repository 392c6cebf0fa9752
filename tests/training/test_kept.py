"""What an evaluation keeps of every batch: the values in their order, and the memory between."""

import subprocess
import sys

import pytest
import torch

from moge_bench.training.kept import Kept


@pytest.mark.parametrize("count", [0, 1, 64, 65, 200])
def test_values_come_back_in_their_order(count):
    kept, values = Kept(), [torch.tensor([i, -i], dtype=torch.float64) for i in range(count)]
    for value in values:
        kept.add(value)
    assert torch.equal(kept.stacked(), torch.stack(values) if values else torch.empty(0))


# The growth of the process over 40 batches, in MiB, after 10 in which it finds its size. The logits
# of a batch are 8 MiB, and so is what cross-entropy makes of them.
PROGRAM = """
import resource, torch
from moge_bench.training import perplexity
from moge_bench.training.allocator import keep_freed_memory
assert keep_freed_memory()
seen = []
def logits_of(tokens):
    seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return torch.zeros(*tokens.shape, 1024)
tokens = torch.zeros(128 * 16 * 50 + 1, dtype=torch.int64)
perplexity.score_stream(logits_of, tokens, length=129, stride=128)
print((seen[-1] - seen[9]) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_an_evaluation_does_not_grow():
    grown = int(subprocess.check_output([sys.executable, "-c", PROGRAM], text=True))
    assert grown < 64
