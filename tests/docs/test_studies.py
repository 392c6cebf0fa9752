"""What docs/studies.md says of declared contrasts and of answer.json is what the code has."""

import json

import pages as page

from moge_bench.publish.answers import write_answer
from moge_bench.publish.numbers import shown_numbers
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.answer import make_answer
from moge_bench.study.declared import DeclaredContrast
from moge_bench.study.frame import collect
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import make_manifest

STUDIES_PAGE = (page.ROOT / "docs/studies.md").read_text(encoding="utf-8")


def test_a_declared_contrast_names_every_field():
    rows = page.table("A declared contrast", STUDIES_PAGE)
    said = {name for row in rows for name in page.names(row["field"])}
    assert said == set(DeclaredContrast.model_fields)


def test_the_answer_names_every_field(tmp_path):
    text = STUDIES_PAGE.partition("```yaml\n")[2].partition("```")[0]
    manifest = make_manifest(parse_grid(text, "studies.md"))
    results = collect(manifest, RecordStore(tmp_path), SpeedStore(tmp_path))
    write_answer(make_answer(results), shown_numbers(results), tmp_path)
    answer = json.loads((tmp_path / "answer.json").read_text())
    rows = page.table("answer.json", STUDIES_PAGE)
    assert {name for row in rows for name in page.names(row["field"])} == set(answer)
    said = set(page.names(page.section("answer.json", STUDIES_PAGE)))
    assert answer["declaration"].keys() <= said
    for contrast in (answer["primary"], *answer["secondary"]):
        assert contrast.keys() <= said
        assert {key for cell in contrast["cells"] for key in cell} <= said
        assert {key for run in contrast["missing"] for key in run} <= said
