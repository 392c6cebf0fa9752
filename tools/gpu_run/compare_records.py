"""What the records of two results folders say, and whether runs of one config agree bit for bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SAME = ("metrics", "curves", "routing", "checks")


def read_records(folder: str) -> dict[str, dict[str, Any]]:
    """Return run_id -> record."""
    found = (json.loads(path.read_text()) for path in Path(folder, "runs").glob("*/*.json"))
    return {record["run_id"]: record for record in found}


def main() -> None:
    """Print every record of the first folder, then what both hold."""
    first, again = (read_records(folder) for folder in sys.argv[1:3])
    for record in first.values():
        error = (record["error"] or {}).get("message", "")
        print(record["summary"], record["status"], record["device"], record["backends"],
              record["checks"], f"wall {record['wall_s']:.1f} s", error)  # fmt: skip
    shared = first.keys() & again.keys()
    for run_id in sorted(shared):
        a, b = first[run_id], again[run_id]
        same = {name: a[name] == b[name] for name in SAME}
        print("SAME BITS AGAIN", all(same.values()), run_id, a["summary"], same)
    if not shared:
        print("no run was made twice")


if __name__ == "__main__":
    main()
