"""What names a run."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def config_hash(values: dict[str, Any]) -> str:
    """Return 16 hex digits of the SHA-256 of ``values`` as canonical JSON."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
