"""Dotted paths into nested settings, and the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
from typing import Any


def field_paths(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return every dotted path of nested ``values``, branches and leaves."""
    paths = []
    for name, value in values.items():
        paths.append(prefix + name)
        if isinstance(value, dict):
            paths += field_paths(value, f"{prefix}{name}.")
    return paths


def nearest(name: str, known: list[str]) -> str:
    """Return "; the nearest is 'X'" for the known name most like ``name``, or a list of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; the nearest is {close[0]!r}" if close else f"; known: {', '.join(sorted(known))}"


def set_path(values: dict[str, Any], path: str, value: Any) -> None:
    """Set ``a.b.c`` in nested ``values``; a mapping sets the fields it names.

    ValueError names an unknown path and the nearest, or says that a section takes no single value.
    """
    *parents, leaf = path.split(".")
    node: Any = values
    for name in parents:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        raise ValueError(f"no setting is called {path!r}{nearest(path, field_paths(values))}")
    if not isinstance(node[leaf], dict):
        node[leaf] = value
        return
    if not isinstance(value, dict) or not value:
        fields = ", ".join(f"{path}.{name}" for name in node[leaf])
        raise ValueError(f"{path!r} is a section, not a setting; got {value!r}; set {fields}")
    for name, inner in value.items():
        set_path(values, f"{path}.{name}", inner)
