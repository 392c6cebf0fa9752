"""Every check of the CUDA kernels, in one list: of mutants.py, and of a process under a sanitizer.

python -m tools.simt.every_check MODE STEP runs every STEP-th of them in the build of MODE.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from tools.simt import cases, checks, dispatch_checks, launch, wider_checks
from tools.simt.kernels import Kernels

Check = Callable[[], None]
TWO = launch.SCHEDULES[1:3]


def every_check(kernels: Kernels, step: int = 1) -> Iterator[Check]:
    """Yield every ``step``-th check of each kind, to be called without arguments.

    Those of all the kinds come in turns, so that a fault of any kernel is met early.
    """
    kinds = [kind[::step] for kind in _kinds(kernels)]
    for turn in itertools.zip_longest(*kinds):
        yield from filter(None, turn)


def _kinds(kernels: Kernels) -> tuple[list[Check], ...]:
    routed = [*cases.every_case(), *cases.SPECIAL]
    builds = [(kernels, schedule) for schedule in launch.SCHEDULES]
    dtypes = itertools.cycle(cases.DTYPES)
    choices = [
        (dispatch_checks.draw_choices(num_tokens, num_experts, top_k), num_experts)
        for num_tokens, num_experts, top_k in ((33, 64, 8), (300, 1024, 4), (1500, 16, 2))
    ]
    biases = ((0, 5, 0, 0, 130, 1), 24, 9), ((128, 256, 0), 300, 140), ((1,) * 70, 7, 0)
    return (
        [partial(checks.check_case, kernels, case, TWO) for case in routed],
        [
            partial(checks.check_group_norm, builds, torch.float32, num_experts, border)
            for border, num_experts in itertools.product(("valid", "torus"), (64, 300, 1024))
        ],
        [
            partial(wider_checks.check_wider, kernels, case, dtype, TWO)
            for case, dtype in zip(wider_checks.CASES, dtypes, strict=False)
        ],
        [
            partial(wider_checks.check_unit_norm, kernels, num_experts, reduction, dtype, True)
            for num_experts, reduction, dtype in zip(
                (12, 64, 300, 1024), itertools.cycle(("token_mean", "official_image")), dtypes,
                strict=False,
            )
        ],
        [
            partial(dispatch_checks.check_sorted, kernels, experts, num_experts, launch.SCHEDULES)
            for experts, num_experts in choices
        ],
        [
            partial(dispatch_checks.check_rows, kernels, TWO, dtype, 37, size, 16, 2, shift)
            for dtype, (size, shift) in zip(dtypes, ((64, 0), (64, 1), (7, 0)), strict=False)
        ],
        [
            partial(
                dispatch_checks.check_biases, kernels, TWO, dtype, counts, size, dropped,
                activation, 0,
            )
            for dtype, (counts, size, dropped), activation in zip(
                dtypes, biases, (1, 3, 0), strict=False
            )
        ],
    )  # fmt: skip


if __name__ == "__main__":
    mode, step = sys.argv[1], int(sys.argv[2])
    chosen = [*every_check(Kernels(mode), step)]
    for check in chosen:
        check()
    print(f"{mode}: {len(chosen)} checks passed")
