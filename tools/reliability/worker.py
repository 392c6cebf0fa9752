"""Runs the cases of one instruction set, one after the other, and says what it found.

python -m tools.reliability.worker SEED FIRST STEP COUNT FOLDER: cases FIRST, FIRST + STEP, ...
below COUNT. FOLDER/at holds the case that runs, for whoever finds this process dead; FOLDER/found
one JSON line a case that differs; FOLDER/counts, at the end, how many were run of each op.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from pathlib import Path

from tools.reliability.cases import draw
from tools.reliability.compare import disagreement


def main() -> None:
    """Run them."""
    seed, first, step, count = map(int, sys.argv[1:5])
    folder = Path(sys.argv[5])
    warnings.simplefilter("ignore")  # of raw logits in group_norm, which are drawn on purpose
    counts: Counter[str] = Counter()
    at = os.open(folder / "at", os.O_CREAT | os.O_WRONLY)
    for index in range(first, count, step):
        os.pwrite(at, f"{index:12}".encode(), 0)
        case = draw(seed, index)
        found = disagreement(case)
        counts[case.op] += 1
        if found is not None:
            with (folder / "found").open("a") as file:
                print(json.dumps({"index": index, "what": found}), file=file)
    (folder / "counts").write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
