"""Exit 0 if both libraries load, are of this csrc, and hold code for the architecture asked for."""

from __future__ import annotations

import os
import sys

from moge_bench.ops import extension


def main() -> None:
    """Print the build facts and what is wrong with them."""
    reasons = [extension.load()[1], extension.load_cuda()[1]]
    problems = [reason for reason in reasons if reason]
    problems += filter(None, (extension.stale_build(), extension.stale_cuda_build()))
    facts = extension.cuda_facts()
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")
    if facts and wanted not in facts["architectures"].split():
        problems.append(f"the CUDA library is built for {facts['architectures']}, not {wanted}")
    print("libraries:", facts, problems or "usable as they are")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
