"""What code, tests and documents refer to is there: pages, their headings, links, the layout."""

import re

import pages as page
import pytest

ROOT = page.ROOT
FOLDERS = ("csrc", "moge_bench", "tests", "tools", "scripts", "ablations", "docs", ".github")
SUFFIXES = {".py", ".md", ".h", ".cpp", ".cu", ".cuh", ".yaml", ".yml", ".sh", ".toml"}
PAGE = re.compile(r"docs/(?P<name>\w+)\.md(?P<after>(?:(?: and)? \"[^\"]+\")*)")
# A line break within a comment or docstring, with what opens the next line.
BREAK = re.compile(r"\s*\n\s*(?://+|#+|\*)?\s*")


def texts():
    """Yield (path from the root, text) of every source and document of the tree but this one."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in [*found, *ROOT.glob("*")]:
        if (
            path.suffix in SUFFIXES or path.name == "Makefile"
        ) and path.name != "test_references.py":
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def headings(name):
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    return set(
        re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    )


def broken_references(text):
    """Return every reference to a page that is not there, or to a heading that it lacks."""
    broken = []
    for match in PAGE.finditer(BREAK.sub(" ", text)):
        if not (ROOT / f"docs/{match['name']}.md").exists():
            broken.append(match[0])
            continue
        quoted = re.findall(r'"([^"]+)"', match["after"])
        broken += [
            f"{match[0]}: {title}" for title in quoted if title not in headings(match["name"])
        ]
    return broken


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ('see docs/method.md "Routing" 1.', 0),
        ('// on a tile (docs/method.md "Group-sparse\n// loss")', 0),
        ('    docs/method.md "Routing" and\n    "Group-sparse loss").', 0),
        ('"""The map (docs/method.md)."""', 0),
        ("docs/nothing.md", 1),
        ('# docs/method.md "Rooting"', 1),
        ('docs/method.md "Routing" and "Nothing"', 1),
    ],
)
def test_a_broken_reference_is_found(text, broken):
    assert len(broken_references(text)) == broken


FILE = re.compile(r"\b(?:tests|scripts|tools|ablations|moge_bench)/[\w/]+\.(?:py|yaml)\b")


def test_files_that_code_and_documents_name_are_there():
    named = {
        f"{path}: {name}"
        for path, text in texts()
        if not path.startswith("tests/") and path != "CHANGELOG.md"
        for name in FILE.findall(text)
        if "NAME" not in name and not (ROOT / name).exists()
    }
    assert named == set()


def test_references_lead_to_pages_and_headings():
    broken = {path: found for path, text in texts() if (found := broken_references(text))}
    assert broken == {}


def test_quoted_headings_within_the_pages_are_there():
    for name in ("method", "design"):
        text = " ".join((ROOT / f"docs/{name}.md").read_text(encoding="utf-8").split())
        quoted = set(re.findall(r'(?:see|under|of) "([A-Z][^"]+)"', text))
        assert quoted <= headings(name), name


def test_nothing_refers_to_pages_that_the_repository_lacks():
    stale = re.compile(r"\b(?:METHOD|DESIGN)\b")
    assert [path for path, text in texts() if stale.search(text)] == []


def layout():
    """Yield (path from the root, what is said of it) of every line of the layout."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Layout\n\n```\n(.*?)```", text, re.DOTALL)
    for line in re.sub(r"\n {10,}", " ", block).splitlines():  # lines that go on with one
        entry, _, said = line.strip().partition(" ")
        yield ("moge_bench/" if line.startswith("  ") else "") + entry, said


def test_the_layout_is_that_of_the_tree():
    named = dict(layout())
    for entry, said in named.items():
        assert (ROOT / entry).exists(), entry
        folder = ROOT / entry if entry.endswith("/") else ROOT
        for name in re.findall(
            r"[\w.-]+\.(?:py|md|yaml|toml|txt|cff)\b|\b[a-z_]+/(?=[ ,\n]|$)", said
        ):
            assert (folder / name).exists(), f"{entry}: {name}"
    packages = {f"moge_bench/{path.parent.name}/" for path in ROOT.glob("moge_bench/*/__init__.py")}
    assert packages <= named.keys()
