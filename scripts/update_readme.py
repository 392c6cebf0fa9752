"""Copies the committed tables that README.md shows from results/tables into it."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def updated(readme: str, tables: Path) -> str:
    """Return the text of the README with every marked block replaced by its table's lines."""

    def replace(match: re.Match[str]) -> str:
        lines = (tables / f"{match['name']}.md").read_text(encoding="utf-8").splitlines()
        table = "\n".join(line for line in lines if line.startswith("|"))
        return f"{match['begin']}\n{table}\n{match['end']}"

    return re.sub(
        r"(?P<begin><!-- table (?P<name>[\w-]+):[^\n]*-->)\n"
        r".*?(?P<end><!-- end of table (?P=name) -->)",
        replace, readme, flags=re.DOTALL,
    )  # fmt: skip


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(
        updated(path.read_text(encoding="utf-8"), ROOT / "results/tables"), encoding="utf-8"
    )
