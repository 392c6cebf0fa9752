"""Fuzzes one target: python -m tools.reliability.fuzz_worker TARGET SECONDS FOLDER.

FOLDER/corpus is what it starts from and adds to; FOLDER/counts.json, written as it goes, how often
it ran and what was raised; FOLDER/found-*.bin an input of each exception that nothing documents.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["moge_bench", "tools.reliability.fuzz_targets"]):
    from tools.reliability.fuzz_targets import ALLOWED, TARGETS

_EVERY = 2.0  # seconds between two writings of the counts: libFuzzer ends without a word to us
_LONGEST = 1 << 15


def main() -> None:
    """Fuzz."""
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    corpus, scratch = folder / "corpus", folder / "scratch"
    for made in (corpus, scratch / "speed"):
        made.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    raised: Counter[str] = Counter()
    findings: dict[str, str] = {}
    ran, written = 0, 0.0

    def try_one(data: bytes) -> None:
        nonlocal ran, written
        ran += 1
        try:
            TARGETS[name].read(data, scratch)
        except ALLOWED as error:
            raised[type(error).__name__] += 1
        except Exception as error:
            raised[type(error).__name__] += 1
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            if place not in findings:
                findings[place] = str(error)[:300]
                (folder / f"found-{len(findings)}.bin").write_bytes(data)
                written = 0.0
        if time.monotonic() - written > _EVERY:
            written = time.monotonic()
            counts = {"executions": ran, "raised": dict(raised), "findings": findings}
            (folder / "counts.json").write_text(json.dumps(counts))

    options = [f"-max_total_time={seconds}", f"-max_len={_LONGEST}", "-timeout=60", "-seed=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
