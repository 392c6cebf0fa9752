"""Writes what the pages show of studies into them: an answer, a table, what its numbers say.

Blocks are marked `<!-- answer STUDY -->`, `<!-- answers STUDY STUDY ... -->`,
`<!-- table STUDY: TITLE -->` and `<!-- claim STUDY: METRIC on SPLIT, NAME -->`.
"""

import csv
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "results/studies"
PAGES = ("README.md", "docs/language.md")


def updated(page: str, studies: Path) -> str:
    """Return the text of a page with every marked block written anew."""

    def table(match: re.Match[str]) -> str:
        lines = (studies / match["study"] / "tables.md").read_text(encoding="utf-8").splitlines()
        after = lines[lines.index(f"### {match['title']}") + 1 :]
        shown = [line for line in after[: _next_heading(after)] if line.startswith("|")]
        return "\n".join([match["begin"], *shown, match["end"]])

    def claim(match: re.Match[str]) -> str:
        with (studies / match["study"] / "table.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        wanted = {name: match[name] for name in ("metric", "split", "method")}
        return "\n".join([match["begin"], say(rows, **wanted), match["end"]])

    def answer(match: re.Match[str]) -> str:
        lines = (studies / match["study"] / "answer.md").read_text(encoding="utf-8").splitlines()
        (said,) = [line for line in lines if line.startswith("**")]
        return "\n".join([match["begin"], said, match["end"]])

    page = re.sub(
        r"(?P<begin><!-- answer (?P<study>[\w-]+) -->)\n.*?(?P<end><!-- end of answer -->)",
        answer, page, flags=re.DOTALL,
    )  # fmt: skip
    page = re.sub(
        r"(?P<begin><!-- answers (?P<names>[\w -]+) -->)\n.*?(?P<end><!-- end of answers -->)",
        lambda match: "\n".join(
            [match["begin"], *answers(studies.parent, match["names"].split()), match["end"]]
        ),
        page, flags=re.DOTALL,
    )  # fmt: skip
    page = re.sub(
        r"(?P<begin><!-- table (?P<study>[\w-]+): (?P<title>[^\n]+) -->)\n"
        r".*?(?P<end><!-- end of table -->)",
        table, page, flags=re.DOTALL,
    )  # fmt: skip
    return re.sub(
        r"(?P<begin><!-- claim (?P<study>[\w-]+): (?P<metric>\w+) on (?P<split>\w+), "
        r"(?P<method>[\w-]+) -->)\n.*?(?P<end><!-- end of claim -->)",
        claim, page, flags=re.DOTALL,
    )  # fmt: skip


def answers(root: Path, names: list[str]) -> list[str]:
    """Return a table of the primary contrasts of studies: what answers.md has, and the margins."""
    values = json.loads((root / "answers.json").read_text(encoding="utf-8"))
    studies = {each["study"]: each for each in values["studies"]}
    lines = (root / "answers.md").read_text(encoding="utf-8").splitlines()
    rows = {cells[0]: cells for cells in map(_cells, lines) if cells}
    table = [
        "| question | compared | difference [95 %] | margin | p; over all studies | verdict |",
        "|:---|:---|---:|---:|---:|---:|",
    ]
    for name in names:
        _, contrast, estimate, p, corrected, verdict = rows[name]
        question, margin = studies[name]["question"], studies[name]["margin"]
        link = f"[{question}](results/studies/{name}/answer.md)"
        cells = (link, contrast, estimate.replace("*", ""), f"{margin:g}", f"{p}; {corrected}")
        table.append(f"| {' | '.join((*cells, verdict))} |")
    return table


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


def _next_heading(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if line.startswith("#")), len(lines))


def say(rows: list[dict[str, str]], metric: str, split: str, method: str) -> str:
    """Return what the differences of ``method`` from its baseline are, and cannot exclude."""
    arms = {row["arm_id"]: row["method"] for row in rows}
    found = [
        row for row in rows
        if (row["metric"], row["split"], row["method"]) == (metric, split, method)
        and row["difference_low"]
    ]  # fmt: skip
    if not found:
        raise ValueError(f"no difference of {method} in {metric} on {split} has an interval")
    (baseline,) = {arms[row["baseline"]] for row in found}
    seeds = sorted({int(row["difference_n"]) for row in found})
    means, lows, highs = (
        [float(row[name]) for row in found]
        for name in ("difference", "difference_low", "difference_high")
    )
    kept = sum(row["survives_holm"] == "True" for row in found)
    zero = sum(low <= 0 <= high for low, high in zip(lows, highs, strict=True))
    unit = found[0]["difference_unit"]
    unit = f" {unit}" if unit else ""
    n = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    return (
        f"**{method} less {baseline}, {len(found)} comparisons, n = {n} seeds each: mean "
        f"differences of {min(means):+.2f} to {max(means):+.2f}{unit}; {zero} of {len(found)} "
        f"intervals hold zero, and {kept or 'none'} of the differences "
        f"survive{'s' if kept < 2 else ''} Holm's "
        f'correction.** With so few seeds that is not "no difference": the intervals reach from '
        f"{min(lows):+.2f} to {max(highs):+.2f}{unit}, so a difference of up to "
        f"{max(-min(lows), max(highs)):.1f}{unit} cannot be excluded."
    )


if __name__ == "__main__":
    for path in (ROOT / name for name in PAGES):
        path.write_text(updated(path.read_text(encoding="utf-8"), STUDIES), encoding="utf-8")
