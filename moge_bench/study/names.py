"""What study files call things: values that are one value, names that exist."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moge_bench.config import nearest


def canonical(value: Any) -> str:
    """Return equal text for values that a config would not tell apart: 8, 8.0 and "8"."""
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return repr(value)


def coordinates_key(coordinates: Mapping[str, Any]) -> str:
    """Return a text that is equal for equal coordinates, whatever the order of their axes."""
    return json.dumps(coordinates, sort_keys=True)


def check_name(field: str, kind: str, name: str, known: Sequence[str]) -> None:
    """Raise ValueError with the nearest if ``name`` is not among ``known``."""
    if name not in known:
        raise ValueError(f"{field}: no {kind} is called {name!r}{nearest(name, list(known))}")


def find_value(field: str, axis: str, value: Any, values: Sequence[Any]) -> Any:
    """Return the axis's own form of ``value``; ValueError with its values if it has none."""
    for own in values:
        if canonical(own) == canonical(value):
            return own
    raise ValueError(f"{field}: {axis} has no value {value!r}; it has {list(values)}")
