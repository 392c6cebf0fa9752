"""Reads docs/method.md, or another page: what it states, the tests compare with the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/method.md").read_text(encoding="utf-8")


def section(title, page=PAGE):
    """Return the text under the heading ``title``, up to the next heading."""
    (text,) = re.findall(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", page, flags=re.MULTILINE | re.DOTALL
    )
    return text


def prose(title):
    """Return a section without its line breaks."""
    return " ".join(section(title).split())


def tables(title, page=PAGE):
    """Return the tables of a section, each as its rows, each a dict from head to cell."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section(title, page), flags=re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            for line in block.splitlines()
        ]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def table(title, page=PAGE):
    """Return the only table of a section."""
    (rows,) = tables(title, page)
    return rows


def shape(text):
    """Return (4, 8) for "4x8"."""
    rows, cols = re.findall(r"(\d+)x(\d+)", text)[0]
    return int(rows), int(cols)


def names(cell):
    """Return the names in backticks of a cell."""
    return re.findall(r"`([^`]+)`", cell)
