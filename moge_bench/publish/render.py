r"""A table as Markdown and as LaTeX: cells are plain text, escaped here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

MAX_COLUMNS = 6
LATEX_NEEDS = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip
# A table wider than the line is shrunk to it; a narrower one keeps its size.
_FIT = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"


@dataclass(frozen=True)
class Cell:
    """One cell; bold is for differences that survive the correction, and nothing else."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table for people: at most six columns, a caption that needs nothing else.

    ``name`` is its LaTeX label's end and unique in its study; ``left`` is how many of the first
    columns are words.
    """

    name: str
    title: str
    kind: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    left: int

    def __post_init__(self) -> None:
        assert len(self.header) <= MAX_COLUMNS, (self.name, self.header)
        assert all(len(row) == len(self.header) for row in self.rows), self.name


def escape_markdown(text: str) -> str:
    """Return ``text`` as one line, fit for a cell, in which nothing is markup.

    A "<" begins a tag or a link only where a letter or one of "/!?" follows: "p < 0.05" stays.
    """
    return re.sub(r"([\\|*`]|<(?=[A-Za-z/!?]))", r"\\\1", " ".join(text.split()))


def markdown_line(text: str) -> str:
    """Return ``text`` as a paragraph of one line: no heading and no list either."""
    line = escape_markdown(text)
    return f"\\{line}" if line.startswith(("#", ">", "- ", "+ ")) else line


def escape_latex(text: str) -> str:
    """Return ``text`` for LaTeX: specials escaped, a minus before a digit as a minus, -- kept."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped).replace("--", "-{}-")


def to_markdown(table: Table) -> str:
    """Return heading, table and caption."""

    def written(cell: Cell) -> str:
        text = escape_markdown(cell.text)
        return f"**{text}**" if cell.bold else text

    body = tabulate(
        [[written(cell) for cell in row] for row in table.rows],
        headers=[escape_markdown(name) for name in table.header],
        tablefmt="pipe", disable_numparse=True, colalign=_alignment(table),
    )  # fmt: skip
    return f"### {escape_markdown(table.title)}\n\n{body}\n\n{markdown_line(table.caption)}\n"


def _alignment(table: Table) -> list[str]:
    return ["left"] * table.left + ["right"] * (len(table.header) - table.left)


def to_latex(table: Table, study: str) -> str:
    """Return a ``table`` environment with caption and label, no wider than the line."""

    def written(cell: Cell) -> str:
        text = escape_latex(cell.text)
        return f"\\textbf{{{text}}}" if cell.bold else text

    frame = pd.DataFrame(
        [[written(cell) for cell in row] for row in table.rows],
        columns=[escape_latex(name) for name in table.header],
    )
    body = frame.to_latex(
        index=False, escape=False, position="htbp",
        column_format="".join(side[0] for side in _alignment(table)),
        caption=f"{escape_latex(f'Study {study}: {table.title}.')} {escape_latex(table.caption)}",
        label=f"tab:{study}-{table.name}".replace("_", "-"),
    )  # fmt: skip
    body = body.replace("\\begin{tabular}", f"\\centering\n{_FIT}\\begin{{tabular}}", 1)
    return body.replace("\\end{tabular}\n", "\\end{tabular}%\n}\n", 1)
