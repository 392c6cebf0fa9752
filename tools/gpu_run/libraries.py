"""Exit 0 if both libraries load, are of this csrc, and hold code for the GPUs of this machine."""

from __future__ import annotations

import sys

import torch

from moge_bench.ops import extension


def runs_on(entry: str, card: tuple[int, int]) -> bool:
    """Return whether code for ``entry``, such as "9.0", "9.0a" or "8.0+PTX", runs on ``card``.

    ``card`` is (major, minor). Plain code runs on the same major from its minor on, and as PTX on
    every later card; code of a family ("f") runs within the major alone, that of one card ("a")
    there alone: https://docs.nvidia.com/cuda/cuda-compiler-driver-nvcc/#gpu-feature-list.
    """
    number, ptx = entry.removesuffix("+PTX"), entry.endswith("+PTX")
    major, minor = map(int, number.rstrip("af").split("."))
    if number.endswith("a"):
        return card == (major, minor)
    same_major = card[0] == major and card[1] >= minor
    return same_major or (ptx and number[-1] != "f" and card >= (major, minor))


def main() -> None:
    """Print the build facts and what is wrong with them."""
    reasons = [extension.load()[1], extension.load_cuda()[1]]
    problems = [reason for reason in reasons if reason]
    problems += filter(None, (extension.stale_build(), extension.stale_cuda_build()))
    facts = extension.cuda_facts()
    for index in range(torch.cuda.device_count() if facts else 0):
        card = torch.cuda.get_device_capability(index)
        if not any(runs_on(entry, card) for entry in facts["architectures"].split()):
            built, is_of = facts["architectures"], ".".join(map(str, card))
            problems.append(f"the CUDA library is built for {built}, GPU {index} is of {is_of}")
    print("libraries:", facts, problems or "usable as they are")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
