"""`moge-bench tables`: the answer of every study is printed, and written beside its tables."""

import json

from record_samples import STUDY, make_record
from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.runs.store import RecordStore
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import make_manifest, save_manifest


def test_tables_prints_the_answer_and_writes_it(tmp_path):
    grid, store = parse_grid(STUDY, "x"), RecordStore(tmp_path)
    save_manifest(tmp_path, make_manifest(grid))
    for config in grid.configs[:-1]:  # the last run is still to come
        store.write(make_record(config, 70.0 + (config.method == "moge")))
    result = CliRunner().invoke(app, ["tables", "--results", str(tmp_path)])
    assert result.exit_code == 0, result.output
    said = "gain: Cannot tell: moge against moe, +1.00 points of test top-1"
    assert said in result.output
    assert "n = 2 of 3 seeds). Provisional: 1 run not trained yet." in result.output
    answer = json.loads((tmp_path / "studies/gain/answer.json").read_text())
    assert f"gain: {answer['sentence']}" in result.output
    for name in ("answers.md", "answers.json", "systems.md", "studies/gain/answer.md"):
        assert (tmp_path / name).exists(), name
    # A study that cannot be read stops neither the others nor the page over all.
    (tmp_path / "studies/broken").mkdir()
    (tmp_path / "studies/broken/manifest.json").write_text("{")
    (tmp_path / "answers.md").unlink()
    result = CliRunner().invoke(app, ["tables", "--results", str(tmp_path)])
    assert result.exit_code == 1 and said in result.output
    assert (tmp_path / "answers.md").exists()
