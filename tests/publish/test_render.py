"""Markdown and LaTeX of one table, and names that a table's marks are made of."""

import re

import pytest
import yaml
from study_samples import PIVOT, make_study, read_answer

from moge_bench.publish.render import (
    Cell,
    Table,
    escape_latex,
    escape_markdown,
    markdown_line,
    to_latex,
)
from moge_bench.publish.tables import write_tables

NAMES = (
    "a|b.txt",
    "50% of $x$ & y_z.txt",
    r"back\slash{}~^#.txt",
    "line\nbreak.txt",
    "*a* <b>.txt",
)
# LaTeX's specials, where no backslash stands before them; $-$ and the size of the box are ours.
UNESCAPED = re.compile(r"(?<!\\)[&%$#_~^]")


def without_ours(text: str) -> str:
    """Return LaTeX less what is meant: comments, labels, math minus, column signs of rows."""
    lines = [line for line in text.splitlines() if not line.startswith(("%", "\\label"))]
    text = "\n".join(line.removesuffix("%") for line in lines).replace("$-$", "")
    return text.replace(" & ", " ")


def check_latex(text: str) -> int:
    """Check the structure of a file of tables; return how many tables it holds."""
    plain = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in re.sub(r"(?m)^%.*$", "", plain):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert not UNESCAPED.search(without_ours(text))
    stack = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    for table in tables:
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", table)[1])
        assert columns <= 6
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        assert {row.count(" & ") for row in rows} == {columns - 1}
        for needed in ("\\caption{", "\\label{tab:", "\\toprule", "\\midrule", "\\bottomrule"):
            assert table.count(needed) == 1
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(labels)) == len(labels) == len(tables)
    return len(tables)


def test_specials_are_escaped():
    assert escape_latex(r"50 % & a_b #1 {x} $y ~ ^ \z") == (
        r"50 \% \& a\_b \#1 \{x\} \$y \textasciitilde{} \textasciicircum{} \textbackslash{}z"
    )
    assert escape_latex("-0.31 [-1.2; +0.5] state-of-the-art 1e-3 --results") == (
        "$-$0.31 [$-$1.2; +0.5] state-of-the-art 1e-3 -{}-results"
    )
    assert escape_markdown("a|b\n*c*") == r"a\|b \*c\*"
    # A tag begins only where a letter follows; what people read in a terminal stays as it is.
    assert escape_markdown("p < 0.05, <b>, </b>, a > b") == r"p < 0.05, \<b>, \</b>, a > b"
    assert markdown_line("> no quote") == r"\> no quote"


def test_a_table_in_latex():
    table = Table(
        "test-top1", "Test top-1 (%)", "quality", ("group_size", "difference"),
        ((Cell("2"), Cell("-0.31 [-1.27; +0.65]")), (Cell("3"), Cell("+2.00", bold=True))),
        "Mean of n = 3.", 1,
    )  # fmt: skip
    assert to_latex(table, "my_study").splitlines() == [
        r"\begin{table}[htbp]",
        r"\caption{Study my\_study: Test top-1 (\%). Mean of n = 3.}",
        r"\label{tab:my-study-test-top1}",
        r"\centering",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"group\_size & difference \\",
        r"\midrule",
        r"2 & $-$0.31 [$-$1.27; +0.65] \\",
        r"3 & \textbf{+2.00} \\",
        r"\bottomrule",
        r"\end{tabular}%",
        "}",
        r"\end{table}",
    ]


def test_a_study_in_latex_says_what_it_needs(tmp_path):
    make_study(tmp_path, PIVOT)
    folder = tmp_path / "studies/golden"
    write_tables(read_answer(tmp_path), folder)
    text = (folder / "tables.tex").read_text()
    assert text.startswith("% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n")
    assert check_latex(text) == 2 + 2 + 2 + 1  # top-1, throughput and memory in two; parameters


@pytest.fixture
def named(tmp_path):
    """Tables of a study whose axis is files with such names, and the names."""
    for name in NAMES:
        (tmp_path / name).write_text("text of three words " * 20)
    files = [str(tmp_path / name) for name in NAMES]
    values = {
        "name": "golden", "question": "# Which | file\n% of $x$ & y?",
        "base": {"preset": "tiny-lm", "seeds": [0], "set": {"data.tokenizer": "bytes"}},
        "axes": {"data.name": files}, "table": {"rows": "data.name", "metrics": "parameters"},
    }  # fmt: skip
    make_study(tmp_path, yaml.safe_dump(values), accuracy=lambda _: 1.0, speed=False)
    folder = tmp_path / "studies/golden"
    return write_tables(read_answer(tmp_path), folder), (folder / "tables.tex").read_text(), files


def test_names_do_not_break_a_markdown_table(named):
    markdown, _, files = named
    assert "\n\\# Which \\| file % of $x$ & y?\n" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table]
    assert len(table) == 2 + len(NAMES) and len({len(row) for row in rows}) == 1
    shown = [re.sub(r"\\(.)", r"\1", row[0].strip()) for row in rows[2:]]
    assert shown == [name.replace("\n", " ") for name in files]


def test_names_do_not_break_a_latex_table(named):
    _, latex, _ = named
    assert check_latex(latex) == 1
    assert r"50\% of \$x\$ \& y\_z.txt" in latex
    assert r"back\textbackslash{}slash\{\}\textasciitilde{}\textasciicircum{}\#.txt" in latex
    assert "line break.txt" in latex
