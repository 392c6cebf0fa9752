"""The operators: one file each, a plain-PyTorch reference, and the map they are defined on."""

import moge_bench.ops.flops  # noqa: F401  # registers what FlopCounterMode counts
