"""Names of what is measured: the ids that files keep, the titles that people read, and patterns.

An id never changes, so that a history goes on: ``router/N64-k2-h3-T8192-uniform-fp32-valid-t2``,
``instructions/avx2 backward N=64 k=2 h=3``. Nothing here measures, and no torch is needed.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

REGION = re.compile(r"(\S+) (forward|backward) (\d+) (\d+) (\d+u?) (\d+)")
CASE = re.compile(
    r"(?P<op>\w+)/N(?P<N>\d+)-k(?P<k>\d+)-h(?P<h>\d+)-T(?P<T>\d+)(?:-d(?P<d>\d+)-f(?P<f>\d+))?"
    r"-(?P<skew>\w+)-(?P<dtype>\w+)-(?P<border>\w+)-t(?P<threads>\d+)"
)
INSTRUCTIONS = "instructions/"


def region_id(label: str) -> str:
    """Return the id of what the kernel driver calls "avx2 backward 64 2 3 320".

    It is ``instructions/avx2 backward N=64 k=2 h=3``; a label of another form is kept as it is.
    """
    found = REGION.fullmatch(label)
    if found is None:
        return INSTRUCTIONS + label
    isa, direction, experts, top_k, group = found.groups()[:5]
    return f"{INSTRUCTIONS}{isa} {direction} N={experts} k={top_k} h={group}"


def num_tokens(label: str) -> int:
    """Return over how many tokens the kernel driver counted the region ``label``: its last word."""
    return int(label.rsplit(" ", 1)[1])


def title(name: str) -> str:
    """Return the words for a case or region: "router N=64 k=2 h=3, 8192 tokens, 2 threads".

    What is as usual (uniform skew, float32) is left out. A name of another form is returned as it
    is, without "instructions/".
    """
    found = CASE.fullmatch(name)
    if found is None:
        return name.removeprefix(INSTRUCTIONS)
    part = found.groupdict()
    op = {"router": "router", "moe_layer": "MoE layer"}.get(part["op"], part["op"])
    words = [f"{op} N={part['N']} k={part['k']} h={part['h']}", f"{part['T']} tokens"]
    words += [f"d={part['d']} f={part['f']}"] if part["d"] else []
    words += [part["skew"]] if part["skew"] != "uniform" else []
    words += [part["dtype"]] if part["dtype"] != "fp32" else []
    words += [f"{part['threads']} thread{'s' if part['threads'] != '1' else ''}"]
    return ", ".join(words)


def matches(name: str, pattern: str | None) -> bool:
    """Say whether ``pattern`` fits the id or the title of ``name``; None fits everything.

    A pattern with ``*`` or ``?`` is a glob for the whole name; any other must stand within it.
    Brackets are no part of a glob here: intervals and lists in names would need escapes.
    """
    if pattern is None:
        return True
    for text in (name, title(name)):
        if "*" in pattern or "?" in pattern:
            if fnmatch.fnmatchcase(text, pattern.replace("[", "[[]")):
                return True
        elif pattern in text:
            return True
    return False


def choose(names: Iterable[str], pattern: str | None, where: str) -> list[str]:
    """Return the names that ``pattern`` fits; ValueError names three that exist if none does."""
    names = list(names)
    chosen = [name for name in names if matches(name, pattern)]
    if not chosen:
        raise ValueError(
            f"case={pattern!r} matches nothing in {where}: give a part of a name, or a glob for "
            f"the whole of one; it holds {', '.join(names[:3])}"
        )
    return chosen
