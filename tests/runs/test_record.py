import errno
import json
import os
import resource
import signal

import pytest
from record_samples import make_record

from moge_bench import system
from moge_bench.presets import resolve
from moge_bench.runs.record import label, stable_part, summarize
from moge_bench.runs.store import RecordStore, read_record

CONFIG = resolve("tiny-vit", "moge", seed=3)


def test_round_trip(tmp_path):
    store = RecordStore(tmp_path)
    path = store.write(make_record(CONFIG, 81.5))
    assert path == tmp_path / "runs" / CONFIG.run_id[:2] / f"{CONFIG.run_id}.json"
    record = store.read(CONFIG.run_id)
    assert stable_part(record) == stable_part(make_record(CONFIG, 81.5))
    assert record.value("top1_accuracy", "test") == 81.5
    assert record.value("top1_accuracy", "validation") is None


def test_opens_with_a_sentence_that_says_what_how_well_and_on_what(tmp_path):
    path = RecordStore(tmp_path).write(make_record(CONFIG, 81.5))
    summary = json.loads(path.read_text())["summary"]
    for part in ("tiny-vit moge N=64 k=1 h=3", "seed=3", "81.5 %", "Test CPU"):
        assert part in summary


@pytest.mark.parametrize(
    ("method", "said"), [("dense", "no MoE layer"), ("moe", "no MoE layer ran")]
)
def test_a_run_in_which_nothing_was_routed_says_whether_it_has_moe_layers(method, said):
    assert summarize(make_record(resolve("tiny-vit", method))).endswith(f"1 thread(s), {said}")


def test_label_names_the_residual_where_it_is_not_plain():
    assert label(CONFIG) == "tiny-vit moge N=64 k=1 h=3 lambda=1000 seed=3"
    adam = resolve("tiny-lm", "moe", {"moe.residual.kind": "adam"})
    assert label(adam) == "tiny-lm moe N=64 k=2 adam seed=0"


def test_a_reader_never_sees_half_a_record(tmp_path, monkeypatch):
    store = RecordStore(tmp_path)
    path = store.write(make_record(CONFIG, 1.0))
    before = path.read_bytes()

    def killed(*_):
        assert path.read_bytes() == before  # everything is written, nothing is renamed yet
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write(make_record(CONFIG, 2.0))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_full_disk_leaves_the_old_record(tmp_path, monkeypatch):
    store = RecordStore(tmp_path)
    path = store.write(make_record(CONFIG, 1.0))
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(system.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(make_record(CONFIG, 2.0))
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_a_refusal_of_the_kernel_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    system.write_atomically(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            system.write_atomically(path, "x" * 5000)  # 1,000 bytes of it reach the disk
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_others_may_read_a_record_as_the_umask_allows(tmp_path):
    mask = os.umask(0o022)
    try:
        path = RecordStore(tmp_path).write(make_record(CONFIG))
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v | {"schema": 9}, "schema 9 and this version reads up to 2.*newer moge-bench"),
        (lambda v: v | {"schema": "two"}, "it has schema 'two'; schemas 1 to 2 are known"),
        (lambda v: v | {"seed": "three"}, "seed must be a whole number, got 'three'"),
        (lambda v: v | {"seed": 4}, "seed 4 is not that of its settings, 3"),
        (lambda v: v | {"run_id": "0" * 16}, "is not that of its settings"),
        (lambda v: v | {"mood": "good"}, "no field is called 'mood'"),
        (lambda v: v | {"status": "diverged"}, "a diverged record, and no other, has the step"),
        (lambda v: {n: x for n, x in v.items() if n != "settings"}, "settings"),
        (lambda v: v | {"status": "failed"}, "a failed record, and no other, has an error"),
        (lambda v: [v], "a record is a JSON object, got list"),
    ],
)
def test_damaged_record_is_named_with_what_to_do(tmp_path, damage, message):
    path = RecordStore(tmp_path).write(make_record(CONFIG))
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "move it away to run that run again" in str(caught.value)


def test_half_a_file_is_named(tmp_path):
    path = RecordStore(tmp_path).write(make_record(CONFIG))
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="is not a record"):
        read_record(path)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        make_record(CONFIG, float("nan"))
