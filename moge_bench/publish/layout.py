"""Where an arm stands in a table or a figure: a pivot of arms by their axis values.

An axis that makes no difference to an arm (dense has no number of experts) is ``ANY`` there. Such
an arm stands wherever its other values fit, so that it is beside every arm it is compared with;
it has a line of its own only where nothing else would be in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moge_bench.study.frame import ANY, Arm

Key = tuple[str, ...]  # a text for each of some axes: its value, or ANY
_Mask = tuple[int, ...]  # the positions of a key that are ANY
# Settings that docs/method.md has a shorter word for; the others are called by their last names.
_WORDS = {"moe.num_experts": "experts", "moe.top_k": "k", "moe.group.weight": "lambda"}


@dataclass(frozen=True)
class Layout:
    """Rows and columns as keys, in the order of the axes' values, and the arm of each cell."""

    rows: tuple[Key, ...]
    columns: tuple[Key, ...]
    arms: dict[tuple[Key, Key], Arm]


def lay_out(
    arms: Sequence[Arm], axes: Mapping[str, Sequence[Any]], rows: Sequence[str],
    columns: Sequence[str],
) -> Layout:  # fmt: skip
    """Return the pivot of ``arms`` over the axes ``rows`` and ``columns``; time is linear."""
    row_keys = _keys(arms, axes, rows)
    column_keys = _keys(arms, axes, columns)
    row_masks, column_masks = _masks(row_keys), _masks(column_keys)
    row_set, column_set = set(row_keys), set(column_keys)
    cells: dict[tuple[Key, Key], Arm] = {}
    for arm in arms:
        for coordinates in arm.entry.coordinates:
            at_rows = _matching(coordinates, rows, row_masks, row_set)
            at_columns = _matching(coordinates, columns, column_masks, column_set)
            for row in at_rows:
                for column in at_columns:
                    if _fits(arm, (*rows, *columns), (*row, *column)):
                        cells[row, column] = arm
    return Layout(row_keys, column_keys, cells)


def _keys(arms: Sequence[Arm], axes: Mapping[str, Sequence[Any]], along: Sequence[str]) -> Any:
    """Return the distinct keys of the arms less those that only cover others, in order."""
    places = [{ANY: -1} | {str(v): i for i, v in enumerate(axes[axis])} for axis in along]
    keys = {tuple(str(arm.shown[axis]) for axis in along) for arm in arms}
    covers: set[Key] = set()
    for mask in _masks(keys):
        masked = [key for key in keys if not set(_mask(key)) >= set(mask)]
        covers |= {_masked(key, mask) for key in masked}
    kept = keys - covers
    return tuple(sorted(kept, key=lambda key: [p[t] for p, t in zip(places, key, strict=True)]))


def _mask(key: Key) -> _Mask:
    return tuple(i for i, text in enumerate(key) if text == ANY)


def _masks(keys: Any) -> list[_Mask]:
    return sorted({_mask(key) for key in keys})


def _masked(key: Key, mask: _Mask) -> Key:
    return tuple(ANY if i in mask else text for i, text in enumerate(key))


def _matching(
    coordinates: Mapping[str, Any], along: Sequence[str], masks: list[_Mask], keys: set[Key]
) -> list[Key]:
    full = tuple(str(coordinates[axis]) for axis in along)
    found = dict.fromkeys(_masked(full, mask) for mask in masks)
    return [key for key in found if key in keys]


def _fits(arm: Arm, axes: Sequence[str], key: Key) -> bool:
    """Return whether the arm is ANY wherever the key is."""
    return all(t != ANY or arm.shown[axis] == ANY for axis, t in zip(axes, key, strict=True))


def axis_title(path: str) -> str:
    """Return an axis or setting for people: "moe.group.size" is "group size"."""
    if path in _WORDS:
        return _WORDS[path]
    parts = path.split(".")
    return " ".join(parts[1:] or parts).replace("_", " ")


def key_label(axes: Sequence[str], key: Key) -> str:
    """Return a key for people: "moge, group size 2"; the method's name needs no title."""
    shown = [
        text if axis == "method" else f"{axis_title(axis)} {text}"
        for axis, text in zip(axes, key, strict=True)
        if text != ANY
    ]
    return ", ".join(shown) or "all"
