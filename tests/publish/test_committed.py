"""The committed tables: those of the committed records, six columns at most, LaTeX that holds."""

import csv
import json
from pathlib import Path

import pytest
from study_samples import cells, read_answer
from test_render import check_latex

from moge_bench.publish.overview import write_overview
from moge_bench.publish.systems import write_systems
from moge_bench.publish.tables import write_tables
from moge_bench.runs.store import RecordStore
from moge_bench.study.manifest import manifest_path, read_manifest

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = sorted(path.parent.name for path in RESULTS.glob("studies/*/manifest.json"))


def has_a_record(study):
    """A study may be declared before its first run."""
    run_ids = read_manifest(manifest_path(RESULTS, study)).run_ids
    return any(RecordStore(RESULTS).path(run_id).exists() for run_id in run_ids)


def flat(value, path=""):
    """Yield (path, leaf) of nested JSON."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for name, each in inner:
            yield from flat(each, f"{path}/{name}")
    else:
        yield path, value


@pytest.mark.parametrize("study", STUDIES)
def test_tables_are_those_of_the_records(study, tmp_path):
    committed, made = RESULTS / "studies" / study, tmp_path / "results/studies" / study
    write_tables(read_answer(RESULTS, study), made)
    for name in ("tables.md", "tables.tex", "runs.csv", "answer.md"):
        assert (made / name).read_bytes() == (committed / name).read_bytes(), name
    found, answer = (json.loads((f / "answer.json").read_text()) for f in (made, committed))
    assert [*flat(found)] == [
        (path, pytest.approx(value, rel=1e-7) if isinstance(value, float) else value)
        for path, value in flat(answer)
    ]
    # The last digit of an interval is the library's; everything else is the same text.
    rows, others = (list(csv.reader((f / "table.csv").open())) for f in (made, committed))
    assert len(rows) == len(others) > 1
    for row, other in zip(rows, others, strict=True):
        for a, b in zip(row, other, strict=True):
            assert a == b or float(a) == pytest.approx(float(b), rel=1e-9)


@pytest.mark.parametrize("study", STUDIES)
def test_tables_are_at_most_six_columns_wide(study):
    markdown = (RESULTS / "studies" / study / "tables.md").read_text()
    titles = [line[4:] for line in markdown.splitlines() if line.startswith("### ")]
    for title in titles:
        rows = cells(markdown, title)
        assert len(rows[0]) <= 6, title
        assert {len(row) for row in rows} == {len(rows[0])}
        columns = list(zip(*rows[1:], strict=True))
        assert not any(set(column) == {"-"} for column in columns), title
    assert check_latex((RESULTS / "studies" / study / "tables.tex").read_text()) == len(titles)
    assert titles or not has_a_record(study)


@pytest.mark.parametrize("study", [study for study in STUDIES if has_a_record(study)])
def test_figures_are_there(study):
    names = {path.name for path in (RESULTS / "studies" / study).iterdir()}
    for figure in ("answer", "curves"):
        assert {f"{figure}.png", f"{figure}.svg"} <= names


def test_the_pages_over_all_studies_are_those_of_the_records(tmp_path):
    answers = [read_answer(RESULTS, study) for study in STUDIES]
    write_overview(answers, tmp_path / "results")
    write_systems([answer.results for answer in answers], tmp_path / "results")
    for name in ("answers.md", "systems.md"):
        assert (tmp_path / "results" / name).read_text() == (RESULTS / name).read_text()
