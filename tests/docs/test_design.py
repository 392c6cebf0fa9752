"""What docs/design.md says of formats and commands is what the code has."""

import re

import pages as page
import typer

from moge_bench.cli import app
from moge_bench.runs.record import Record
from moge_bench.runs.speed import ArmSpeed, SpeedPass
from moge_bench.study.grid import Base, GridFile, TableLayout, parse_grid
from moge_bench.study.manifest import ArmEntry, Declaration, Manifest

DESIGN_PAGE = (page.ROOT / "docs/design.md").read_text(encoding="utf-8")


def fields(model):
    return {info.alias or name for name, info in model.model_fields.items()}


def code(title):
    """Return the fenced block of a section."""
    (text,) = re.findall(r"```\w*\n(.*?)```", page.section(title, DESIGN_PAGE), re.DOTALL)
    return text


def test_record_format_names_every_field():
    rows = page.table("Record format", DESIGN_PAGE)
    said = {name for row in rows for name in page.names(row["field"])}
    within = {"error", "diverged_at"}  # said beside `status`
    assert said | within == fields(Record)
    content = {row["field"]: page.names(row["content"]) for row in rows}
    assert within <= set(content["`status`"])


def test_speed_file_format_names_every_field():
    rows = page.table("Speed file format", DESIGN_PAGE)
    assert {name for row in rows for name in page.names(row["field"])} == fields(SpeedPass)
    assert set(page.names(rows[-1]["content"])) == fields(ArmSpeed)


def test_manifest_names_every_field():
    said = set(page.names(page.section("Manifest", DESIGN_PAGE)))
    assert fields(ArmEntry) | fields(Declaration) <= said
    assert fields(Manifest) - {"schema"} <= said


def test_the_study_file_is_one():
    grid = parse_grid(code("One study file"), "design.md")
    # MoE: N in 16, 32, 64. MoGE: those at h = 3, and 16, 32 at h = 2. And dense.
    assert len(grid.arms) == 3 + 5 + 1
    text = page.section("One study file", DESIGN_PAGE)
    for model, prefix in ((GridFile, ""), (Base, "base."), (TableLayout, "table.")):
        for name in fields(model):
            assert re.search(rf"(?m)^ *{name}:", text) or f"`{prefix}{name}`" in text, name


def commands(group):
    """Yield the words of every command: ("perf", "run"), ..."""
    for name, command in group.commands.items():
        inner = [*commands(command)] if hasattr(command, "commands") else [()]
        yield from ((name, *words) for words in inner)


def test_command_line_names_every_command():
    words = {" ".join(each) for each in commands(typer.main.get_command(app))}
    said = {
        m.strip()
        for m in re.findall(r"(?m)^moge-bench ((?:[a-z][a-z-]* ?)+)", code("Command line"))
    }
    assert said == words
