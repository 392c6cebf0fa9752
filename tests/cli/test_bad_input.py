"""What is damaged, foreign or closed: one sentence that says what and what to do, nothing lost."""

import errno
import json
import os
import shutil

import pytest
import yaml
from record_samples import make_record
from typer.testing import CliRunner

from moge_bench import system
from moge_bench.cli import app
from moge_bench.presets import resolve
from moge_bench.runs.store import RecordStore
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import make_manifest, save_manifest

pytestmark = pytest.mark.usefixtures("few_images")

GRID = {
    "name": "small",
    "question": "Is it read?",
    "base": {"preset": "tiny-vit", "seeds": [0, 1, 2],
             "set": {"training.steps": 2, "training.batch_size": 8}},
    "axes": {"method": ["dense", "moe"]},
    "table": {"rows": "method", "metrics": "top1_accuracy"},
}  # fmt: skip


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output, result.output
    return result


def make_study(root, name="small", leave_out=0):
    """A study with a record of every run but the last ``leave_out``; return their paths."""
    grid = parse_grid(yaml.safe_dump({**GRID, "name": name}), "grid")
    save_manifest(root, make_manifest(grid))
    store = RecordStore(root)
    configs = [config for arm in grid.arms for config in arm.configs]
    configs = configs[: len(configs) - leave_out]
    return [store.write(make_record(config, 50.0 + config.seed)) for config in configs]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def grid_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return path


def edited(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def torn(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edited(schema=9), "schema 9 and this version reads up to 2"),
        (edited(mood="good"), "no field is called 'mood'"),
        (edited(run_id="0" * 16), "is not that of its settings"),
        (torn, "is not a record"),
    ],
)
def test_a_record_that_cannot_be_read(root, grid_file, damage, message):
    paths = make_study(root)
    apart = {**GRID, "name": "other", "base": {**GRID["base"], "seeds": [7, 8, 9]}}
    save_manifest(root, make_manifest(parse_grid(yaml.safe_dump(apart), "other")))
    damage(paths[0])
    before = paths[0].read_bytes()
    result = run("tables", "--results", root)
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("moge-bench:")]
    assert line.startswith(f"moge-bench: study small: {paths[0]} is not a record: ")
    assert message in line and line.endswith("move it away to run that run again")
    assert (root / "studies/other/tables.md").exists()  # the other study's are written
    result = run("ablate", grid_file, "--results", root)
    assert result.exit_code == 2 and message in result.output
    assert paths[0].read_bytes() == before and all(path.exists() for path in paths)
    paths[0].rename(root / "away.json")  # what the sentence says to do
    result = run("ablate", grid_file, "--results", root, "--dry-run")
    assert "6 runs, 5 done, 1 to do" in result.output


def test_a_run_that_the_manifest_names_and_nobody_made_is_missing(root):
    make_study(root, leave_out=2)
    result = run("tables", "--results", root)
    assert result.exit_code == 0
    assert "1 of 3; 2 missing" in result.output


def test_a_copy_under_another_name_changes_nothing(root):
    paths = make_study(root)
    before = run("tables", "--results", root).output
    run_id = paths[0].stem
    shutil.copy(paths[0], paths[0].with_name(f"{run_id} (copy).json"))
    shutil.copy(paths[0], root / "runs" / f"{run_id}.json")
    strange = paths[0].with_name(f"{run_id[:2]}{'0' * 14}.json")
    shutil.copy(paths[0], strange)
    assert run("tables", "--results", root).output == before
    assert run("show", run_id, "--results", root).exit_code == 0  # and not "2 records start with"
    result = run("show", strange.stem, "--results", root)
    assert result.exit_code == 2
    assert f"{strange} is not a record: it holds the run {run_id}" in result.output
    assert "move it away" in result.output


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_a_results_folder_below_a_file_is_said_before_anything_is_trained(
    tmp_path, grid_file, command, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("moge_bench.cli.run._execute", lambda *_, **__: pytest.fail("it trained"))
    subject = "tiny-vit" if command == "train" else grid_file
    result = run(command, subject, "--results", tmp_path / "file/results")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == (
        f"moge-bench: {tmp_path}/file/results/runs cannot be used: not a directory; mend that, or "
        "give another folder with --results"
    )


@pytest.mark.parametrize("command", ["tables", "figures"])
def test_a_read_only_folder_of_a_study_is_said(root, command, monkeypatch):
    make_study(root)

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(system.os, "replace", refuse)
    result = run(command, "--results", root)
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line.startswith("moge-bench:")]
    assert f"study small: {root}/studies/small/" in lines[0]  # then the page of all answers
    for line in lines:
        assert "cannot be used: read-only file system; mend that, or give another folder" in line
    assert [path.name for path in (root / "studies/small").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("what", ["records", "grids"])
@pytest.mark.parametrize("command", ["tables", "figures", "ablate", "train"])
def test_a_folder_of_version_0_1_is_told_from_an_empty_one(root, grid_file, command, what):
    old = root / ("runs/0123456789abcdef.json" if what == "records" else "grids/small.yaml")
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"schema_version": 1}) if what == "records" else "name: small")
    subject = {"ablate": [grid_file], "train": ["tiny-vit"]}.get(command, [])
    result = run(command, *subject, "--results", root)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == (
        f"moge-bench: {root} has the layout of moge-bench 0.1 ({old.relative_to(root)}): run "
        f"`python scripts/migrate_results.py {root}` in a source checkout, which trains nothing "
        "again"
    )
    assert "layout of moge-bench 0.1" in run("show", "0123", "--results", root).output
    assert [path for path in root.rglob("*") if path.is_file()] == [old]


def test_a_checkpoint_of_another_model_fails_that_run_with_what_to_do(root):
    from moge_bench.runs import provenance
    from moge_bench.runs.execute import execute_run
    from moge_bench.training.loop import train

    class Killed(Exception):
        pass

    def kill(_done, _total):
        raise Killed

    settings = {"training.steps": 2, "training.batch_size": 8}
    code = provenance.code_version()
    config = resolve("tiny-vit", "dense", settings)
    path = root / "checkpoints" / f"{config.run_id}-{code['digest']}.safetensors"
    wider = resolve("tiny-vit", "dense", {**settings, "model.ffn_size": 64})
    with pytest.raises(Killed):
        train(wider, kill, checkpoint=path, checkpoint_every_s=0.0)
    record = execute_run(config, code, None, root)
    assert (record.status, record.error.type) == ("failed", "ValueError")
    assert record.error.message.startswith(f"checkpoint {path} is of another model")
    assert record.error.message.endswith("delete it to start that run anew")
    path.unlink()
    assert execute_run(config, code, None, root).status == "finished"
