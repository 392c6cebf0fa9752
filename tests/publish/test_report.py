import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from record_samples import make_record
from study_samples import make_study, read_answer
from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.publish.report import themed, write_report
from moge_bench.publish.rewards import draw_rewards, loss_numbers
from moge_bench.publish.tables import write_tables
from moge_bench.runs.store import RecordStore

RESULTS = Path(__file__).parents[2] / "results"
STUDY = """
name: golden
question: Is MoGE better, <b>really</b>?
primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes: {method: [dense, moe, moge]}
table:
  rows: method
  metrics: [top1_accuracy, score_entropy, peak_memory_mib, tokens_per_second, active_parameters]
"""


class Page(HTMLParser):
    """What a page has: ids, links, cells with their unrounded values, and what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.cells, self.numbers, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src", "xlink:href") if name in found]
        if tag == "td":
            self.cells.append([found.get("data-sort"), ""])
        if "data-arms" in found:
            self.numbers.append(found)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1][1] += data


def without_figures(answer, folder, analyses, names):
    """Draw nothing."""
    return [("answer", '<svg viewBox="0 0 1 1"></svg>')]


def page_of(root, draw=without_figures):
    text = write_report([read_answer(root)], root, draw).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "results"
    make_study(root, STUDY)
    return root


def test_the_page_has_question_answer_numbers_and_command(root):
    text, page = page_of(root)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    # moge - moe: 1, 2, 3; t = 2 / (1 / sqrt(3)) = 3.46, p = 0.074.
    assert "moge against moe, +2.00 points of test top-1 (95 % interval -0.48 to +4.48" in text
    assert "Is MoGE better, &lt;b&gt;really&lt;/b&gt;?" in text
    assert "moge-bench report --results results" in text
    cells = {shown.strip(): sort for sort, shown in page.cells}
    assert cells["+2.00 [-0.48; +4.48]"] == "2.0"
    assert cells["78.00 [73.03; 82.97]"] == "78.0"
    assert cells["0.074"].startswith("0.0741")


def test_every_number_leads_to_its_records(root):
    text, page = page_of(root)
    assert page.numbers
    for number in page.numbers:
        for arm in number["data-arms"].split():
            assert f"r-{number['data-study']}-{arm}" in page.ids
    files = {path.relative_to(root).as_posix() for path in root.glob("runs/*/*.json")}
    assert files == {link for link in page.links if link.startswith("runs/")}
    # Every cell with digits has runs behind it, but for the table of docs/method.md.
    head = text[: text.index('<section id="loss">')]
    for cell in re.findall(r'<td class="right"[^>]*>(.*?)</td>', head):
        assert (
            "data-arms" in cell
            or "speed/golden.json" in cell
            or not re.search(r"\d", cell)
            or "0.074" in cell
        ), cell


def test_nothing_is_fetched_and_every_link_leads_somewhere(root):
    write_tables(read_answer(root), root / "studies/golden")
    text, page = page_of(root)
    assert not re.search(r'(src|href)="?(https?:)?//', text)
    assert "@import" not in text and "url(http" not in text
    inner = [link for link in page.links if link.startswith("#")]
    assert {link[1:] for link in inner} <= set(page.ids)
    files = [link for link in page.links if not link.startswith(("#", "data:", "../docs/"))]
    assert all((root / link).is_file() for link in files)
    assert "studies/golden/tables.md" in files
    docs = [link for link in page.links if link.startswith("../docs/")]
    assert docs and all((RESULTS / link).is_file() for link in docs)


def test_an_incomplete_study_says_what_is_missing(root):
    for path in sorted(root.glob("runs/*/*.json")):
        record = json.loads(path.read_text())
        if record["settings"]["method"] == "moge" and record["seed"] == 1:
            path.unlink()
    text, page = page_of(root)
    assert "provisional" in text
    assert "Incomplete: 1 run has no record yet" in text
    assert "seed 1 (missing)" in text
    assert len([link for link in page.links if link.startswith("runs/")]) == 8


def test_a_diverged_run_is_listed_as_one(root):
    answer = read_answer(root)
    record = answer.results.arms[2].records[0]
    RecordStore(root).write(make_record(record.settings, status="diverged", diverged_at=7))
    text, _ = page_of(root)
    assert "seed 0 (diverged)" in text


def test_a_study_without_records_says_so(root):
    for path in root.glob("runs/*/*.json"):
        path.unlink()
    text, _ = page_of(root, draw=lambda *_: [])
    assert "No run is finished." in text
    assert "moge-bench analyze makes them" in text


def test_the_command_writes_the_same_bytes_twice(root):
    result = CliRunner().invoke(app, ["report", "--results", str(root)])
    assert result.exit_code == 0, result.output
    first = (root / "report.html").read_bytes()
    assert b'<svg class="figure"' in first
    CliRunner().invoke(app, ["report", "--results", str(root)])
    assert (root / "report.html").read_bytes() == first


def test_a_figure_takes_the_colours_of_the_page_and_names_of_its_own():
    svg = (
        '<?xml version="1.0"?>\n<svg width="9pt" viewBox="0 0 1 1"><metadata>x</metadata>'
        '<g id="a" style="fill: #1a1a1b; stroke: #d55e00"/><use xlink:href="#a"/>'
        '<g clip-path="url(#a)"/></svg>'
    )
    found = themed(svg, "one", "a <figure>")
    assert found.startswith('<svg class="figure" role="img" aria-label="a &lt;figure&gt;" viewBox')
    assert 'style="fill: var(--ink); stroke: var(--cd55e00)"' in found
    assert 'id="one-a"' in found and "url(#one-a)" in found and 'href="#one-a"' in found
    assert "metadata" not in found and "9pt" not in found


def test_the_picture_of_the_loss_has_the_numbers_of_the_page():
    axes = draw_rewards().axes[0]
    rows = loss_numbers()["loss"]
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in marks[:4]] == [
        float(rows[0][name]) for name in ("uniform", "best one-hot", "worst one-hot", "least")
    ]
    assert len(marks) == 4 * len(rows)


@pytest.mark.skipif(
    not (RESULTS / "report.html").exists(), reason="no results/report.html: `make report` makes it"
)
def test_the_committed_report_is_that_of_the_records(tmp_path):
    committed = (RESULTS / "report.html").read_text(encoding="utf-8")
    names = sorted(path.parent.name for path in RESULTS.glob("studies/*/manifest.json"))
    answers = [read_answer(RESULTS, name) for name in names]

    def text_of(page):
        return re.sub(r"<svg.*?</svg>\s*", "", page, flags=re.DOTALL)

    copy = tmp_path / "results"
    copy.mkdir()
    for path in RESULTS.iterdir():
        if path.name != "report.html":
            (copy / path.name).symlink_to(path)
    # A figure that is not drawn here leaves a line that the committed page has.
    made = write_report(answers, copy, lambda answer, *_: drawn(committed, answer))
    assert text_of(made.read_text(encoding="utf-8")) == text_of(committed)


def drawn(page, answer):
    """Return the names of a study's figures on ``page``, each with nothing in it."""
    name = re.escape(answer.results.study.name)
    found = re.findall(rf'aria-label="(\w+) of the study {name}"', page)
    return [(each, '<svg viewBox="0 0 1 1"></svg>') for each in found]
