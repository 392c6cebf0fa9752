"""What a source includes: what its compiled form is named and made again by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_INCLUDE = re.compile(r'^#include "(.*)"', re.MULTILINE)


def included_files(source: Path, folders: Sequence[Path]) -> list[Path]:
    """Return the source and every header of this project that it includes, directly or not."""
    found, pending = [], [source]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.append(path)
        for name in _INCLUDE.findall(path.read_text()):
            places = [folder / name for folder in (path.parent, *folders)]
            pending += [place for place in places if place.is_file()][:1]
    return found
