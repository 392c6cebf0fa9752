"""What files may do: run nothing, name nothing outside the folder, and be written by several."""

import json
import os
import pickle
import subprocess
import time
from multiprocessing import get_context

import pytest
import torch
from record_samples import STUDY, make_pass, make_record, make_speed
from safetensors import SafetensorError
from safetensors.torch import save
from typer.testing import CliRunner

from moge_bench import system
from moge_bench.analysis.probe import read_probe
from moge_bench.cli.commands import app
from moge_bench.config.words import read_value
from moge_bench.perf import acceptance, history, report
from moge_bench.presets import resolve
from moge_bench.runs import execute, store
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore, read_record
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import make_manifest, manifest_path, read_manifest, save_manifest
from moge_bench.training.checkpoint import load_checkpoint, save_checkpoint, save_weights


class Touches:
    """A pickle of it makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def mark(tmp_path):
    """A file that is there afterwards if something was executed."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system"])
def test_yaml_executes_nothing(tag, mark):
    text = f'{tag} ["touch {mark}"]'
    with pytest.raises(ValueError, match="x: not YAML: could not determine a constructor"):
        parse_grid(f"{STUDY}\nextra: {text}", "x")
    with pytest.raises(ValueError, match="YAML"):
        acceptance.parse(f"- {text}")
    result = CliRunner().invoke(app, ["train", "tiny-vit", "--set", f"training.steps={text}"])
    assert result.exit_code == 2 and "training.steps: the value is not YAML" in result.output


def test_a_checkpoint_executes_nothing(tmp_path, mark):
    path = tmp_path / "state.safetensors"
    path.write_bytes(pickle.dumps(Touches(mark)))
    with pytest.raises(ValueError, match=r"is damaged .* delete it to start that run anew"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "0123456789abcdeF", "", "a/b"])
@pytest.mark.parametrize("field", ["runs", "arm_id"])
def test_a_manifest_names_no_file_outside_its_folder(tmp_path, name, field):
    save_manifest(tmp_path, make_manifest(parse_grid(STUDY, "x")))
    path = manifest_path(tmp_path, "gain")
    values = json.loads(path.read_text())
    values["arms"][0][field] = {"0": name} if field == "runs" else name
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"not a manifest: arms\.0\.{field}.* must be text that"):
        read_manifest(path)


@pytest.mark.parametrize("name", ["../../secret", "a/b", "..", "/tmp/x"])
def test_no_study_or_record_has_a_path_for_a_name(tmp_path, name):
    with pytest.raises(ValueError, match="name must be text that matches"):
        parse_grid(STUDY.replace("name: gain", f"name: {name}"), "x")
    path = RecordStore(tmp_path).write(make_record(resolve("tiny-vit", "moe")))
    values = json.loads(path.read_text()) | {"run_id": name}
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"run_id .* is not that of its settings"):
        read_record(path)
    result = CliRunner().invoke(app, ["show", name, "--results", str(tmp_path)])
    assert result.exit_code == 2 and "no record has it" in result.output


def write_many(root, seed, count):
    store, speeds = RecordStore(root), SpeedStore(root)
    record = make_record(resolve("tiny-vit", "moe"), 50.0 + seed)
    for _ in range(count):
        store.write(record)
        speeds.add("gain", make_pass({"a": make_speed(1000.0 + seed)}))


def test_two_that_write_the_same_files_at_once_leave_whole_ones(tmp_path):
    """Two grids that share runs, and a reader between them: never half a file, and no litter."""
    path = RecordStore(tmp_path).path(resolve("tiny-vit", "moe").run_id)
    context = get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, seed, 40)) for seed in (0, 1)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(read_record(path).value("top1_accuracy", "test"))
        (measured,) = SpeedStore(tmp_path).passes("gain") or [None]
        assert measured is None or set(measured.arms) == {"a"}
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {50.0, 51.0} and seen
    assert sorted(each.name for each in tmp_path.rglob("*") if each.is_file()) == sorted(
        [path.name, "gain.json"]
    )


def test_two_writers_with_one_process_id_do_not_meet(tmp_path, monkeypatch):
    """On a shared disk: the second writes while the first is about to rename."""
    replace, path = os.replace, tmp_path / "a.json"

    def second_comes_between(source, target):
        monkeypatch.setattr(system.os, "replace", replace)
        system.write_atomically(path, "second")
        replace(source, target)

    monkeypatch.setattr(system.os, "replace", second_comes_between)
    system.write_atomically(path, "first")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.json"]


def test_a_clock_that_goes_backwards(tmp_path, monkeypatch):
    """A run takes no negative time, and what was declared keeps its order and its first time."""
    times = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(times))
    monkeypatch.setattr(time, "gmtime", lambda _gmtime=time.gmtime: _gmtime(next(times)))
    settings = {"training.steps": 1, "training.batch_size": 8}
    code = {"commit": None, "dirty": None}
    record = execute.execute_run(resolve("tiny-vit", "dense", settings), code, None)
    assert record.status == "finished" and record.wall_s > 0
    stamps = iter(["2026-02-02T00:00:00Z", "2026-01-01T00:00:00Z"])
    monkeypatch.setattr("moge_bench.study.manifest._now", lambda: next(stamps))
    for text in (STUDY, STUDY, STUDY.replace("0.5", "0.6")):  # declared, again, then changed
        save_manifest(tmp_path, make_manifest(parse_grid(text, "x")))
    found = read_manifest(manifest_path(tmp_path, "gain")).declarations
    assert [each.declared[:10] for each in found] == ["2026-02-02", "2026-01-01"]


DEEP = "[" * 20_000


@pytest.mark.parametrize("text", [DEEP, '!!int ""', "!!bool x", "!!timestamp x", "2001-13-01"])
def test_text_that_yaml_stumbles_over_is_a_sentence(text):
    """PyYAML raises RecursionError, IndexError, KeyError, AttributeError and a bare ValueError."""
    with pytest.raises(ValueError, match="x: "):
        parse_grid(f"{STUDY}\nextra: {text}", "x")
    with pytest.raises(ValueError, match=r"^results/perf/accepted\.yaml is not YAML: "):
        acceptance.parse(f"- {text}")
    with pytest.raises(ValueError, match=r"^training\.steps: the value is not YAML"):
        read_value("training.steps", text)


def test_json_nested_too_deeply_is_a_sentence(tmp_path):
    """Python recurses 1,000 deep."""
    record = RecordStore(tmp_path).path("0" * 16)
    system.write_atomically(record, DEEP)
    with pytest.raises(ValueError, match=rf"{record} is not a record: .*move it away"):
        read_record(record)
    assert store._is_flat(record) is False
    line = tmp_path / "history.jsonl"
    line.write_text(DEEP)
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        history.read(line)
    assert report.earlier(line) is None
    state = tmp_path / "state.safetensors"
    state.write_bytes(save({"a": torch.zeros(1)}, {"step": "1", "measured": DEEP}))
    with pytest.raises(ValueError, match=r"is damaged .*delete it"):
        load_checkpoint(state)
    for header in (DEEP, "[]", '{"version": 2, "mood": "good"}'):
        state.write_bytes(save({"a": torch.zeros(1)}, {"probe": header}))
        with pytest.raises(ValueError, match=r"is (not )?a probe"):
            read_probe(state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"schema": []}, r"it has schema \[\]; schemas 1 to 2 are known"),
        ({"schema": 1, "hash": "", "config": [], "code": {}}, "where config must be an object"),
    ],
)
def test_a_record_whose_schema_is_not_its_shape_is_named(tmp_path, damage, message):
    path = RecordStore(tmp_path).write(make_record(resolve("tiny-vit", "moe")))
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ValueError, match=message):
        read_record(path)


def mounted(folder, options):
    """Mount a tmpfs on ``folder``; skip where that is not allowed."""
    folder.mkdir()
    made = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True, check=False,
    ).returncode == 0  # fmt: skip
    if not made:
        pytest.skip("no file system could be mounted: that needs root")


@pytest.fixture
def read_only_disk(tmp_path):
    """An empty file system that nobody can write, root neither; only root can make one."""
    folder = tmp_path / "disk"
    mounted(folder, "size=64k,ro")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_is_said_before_anything_is_trained(read_only_disk, monkeypatch):
    monkeypatch.setattr("moge_bench.cli.run._execute", lambda *_, **__: pytest.fail("it trained"))
    result = CliRunner().invoke(app, ["train", "tiny-vit", "--results", str(read_only_disk)])
    assert result.exit_code == 1
    assert f"{read_only_disk}/runs cannot be used: read-only file system" in result.output


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; only root can make one."""
    folder = tmp_path / "disk"
    mounted(folder, "size=256k")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_there_and_names_the_file(small_disk):
    """Of 256 KiB 200 are taken: no state of a model fits, and no record of 100 KiB."""
    model = torch.nn.Linear(100, 1000)  # 400 KiB
    optimizer = torch.optim.SGD(model.parameters())
    (small_disk / "other").write_bytes(b"x" * 200 * 1024)
    path = small_disk / "checkpoints/state.safetensors"
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        save_checkpoint(path, 1, model, optimizer, None, torch.zeros(1), {}, [{}])
    with pytest.raises((OSError, SafetensorError), match="No space left on device"):
        save_weights(path, model)
    assert list(path.parent.iterdir()) == []
    store = RecordStore(small_disk)
    config = resolve("tiny-vit", "dense")
    small = make_record(config)
    kept = store.write(small).read_bytes()
    large = make_record(config, checks={"text": "x" * 100 * 1024})
    report = execute.save_record(config, store, large)
    assert report.status == "unwritten" and "No space left on device" in report.message
    assert store.path(config.run_id).read_bytes() == kept
    assert [each.name for each in store.path(config.run_id).parent.iterdir()] == [
        f"{config.run_id}.json"
    ]
