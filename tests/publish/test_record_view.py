import json

import pytest
from record_samples import make_record
from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.presets import resolve
from moge_bench.publish.record_view import compare_records, show_record
from moge_bench.runs.record import RunError
from moge_bench.runs.store import RecordStore


def lines(text):
    """Return the lines of a text with runs of spaces as one."""
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture
def moge():
    config = resolve("tiny-vit", "moge", {"moe.num_experts": 4, "moe.group.size": 2}, seed=3)
    layer = {"block": 2, "split": "test", "load": [1, 2, 3, 4], "dead_expert_share": 0.0}
    return make_record(config, 71.25, routing=[layer], backends={"route": "extension"})


def test_a_record_is_shown_for_people(moge):
    shown = lines(show_record(moge))
    assert shown[0] == f"{moge.run_id}: finished"
    assert "preset tiny-vit, method moge, seed 3, and:" in shown
    assert "moe.num_experts 4 64" in shown  # here, in the preset
    assert "moe.group.size 2 3" in shown
    assert not any(line.startswith("moe.top_k") for line in shown)
    assert "top1_accuracy (%) 71.25" in shown
    # Loads 1 to 4 of 10: 10 % and 40 %.
    assert "2 test 0 4 10.00% 40.00%" in shown
    assert "test read once, after step 2100" in shown
    assert "commit 0123456789abcdef" in shown
    assert "machine cpu Test CPU, cores 2" in shown


def test_a_record_of_a_preset_that_is_gone_shows_all_its_settings(moge):
    settings = moge.settings.model_copy(update={"preset": "gone"})
    shown = show_record(make_record(settings))
    assert "the preset gone does not exist today" in shown
    assert "moe.aux_weight" in shown


def test_a_failed_record_says_why():
    error = RunError(type="KeyError", message="lost", traceback="Traceback: here")
    config = resolve("tiny-vit", "dense")
    shown = show_record(make_record(config, status="failed", error=error, metrics=[]))
    assert "FAILED with KeyError: lost" in shown
    assert "Traceback: here" in shown


def test_two_records_side_by_side(moge):
    moe = make_record(
        resolve("tiny-vit", "moe", {"moe.num_experts": 9}), 70.0, threads=2,
        code={"commit": "f" * 16, "dirty": True}, backends={"route": "reference"},
    )  # fmt: skip
    shown = lines(compare_records(moge, moe))
    for line in (
        "method moge moe", "seed 3 0", "moe.num_experts 4 9",
        "moe.group.size 2 -", "commit 0123456789abcdef ffffffffffffffff", "dirty False True",
        "backends.route extension reference", "threads 1 2", "Outcome: the same",
        "test top1_accuracy 71.25 70 -1.25",
    ):  # fmt: skip
        assert line in shown, line


def test_a_record_does_not_differ_from_itself(moge):
    assert lines(compare_records(moge, moge))[::2] == [
        f"{title}: the same"
        for title in ("Settings", "Code", "Machine", "Outcome", "Metrics", "Process")
    ]


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_the_commands_take_the_first_digits_of_a_name(moge, tmp_path):
    store = RecordStore(tmp_path)
    path = store.write(moge)
    other = make_record(resolve("tiny-vit", "dense"))
    store.write(other)
    results = ("--results", str(tmp_path))
    assert run("show", moge.run_id[:6], *results).output == show_record(moge)
    raw = run("show", moge.run_id, "--json", *results).output
    assert json.loads(raw) == json.loads(path.read_text())
    shown = run("diff", moge.run_id[:6], other.run_id[:6], *results).output
    assert shown == compare_records(moge, other)


def test_an_unknown_name_is_one_sentence(moge, tmp_path):
    RecordStore(tmp_path).write(moge)
    result = run("show", "feed", "--results", str(tmp_path))
    assert result.exit_code == 2
    assert "no record has it" in result.stderr
