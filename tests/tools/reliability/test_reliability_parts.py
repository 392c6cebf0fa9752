"""The other parts of `make reliability`: what they compare, resume and write."""

import ast
import json
import random
from pathlib import Path

import pytest

from tools.reliability import __main__ as command
from tools.reliability import figures, kills, memory, page
from tools.reliability.fuzz_targets import ALLOWED, TARGETS
from tools.reliability.shown import SHOWN

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", TARGETS)
def test_every_reader_says_what_is_wrong_in_a_sentence(name, tmp_path):
    """Of whole files, of halves, of bytes turned, and of nesting deeper than any parser goes."""
    target, rng = TARGETS[name], random.Random(0)
    (tmp_path / "speed").mkdir()
    for seed in target.seeds():
        turned = bytearray(seed)
        for place in rng.sample(range(len(seed)), min(len(seed), 5)):
            turned[place] ^= 1 << rng.randrange(8)
        for data in (seed, seed[: len(seed) // 2], bytes(turned)):
            try:
                target.read(data, tmp_path)
            except ALLOWED as error:
                assert not isinstance(error, RecursionError) and str(error)


def test_the_tests_that_the_page_names_exist():
    for node in (node for nodes in SHOWN.values() for node in nodes):
        path, _, name = node.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}, node


FOUND = {
    "ops": {
        "cases": 3, "seed": 0, "of": {"route": 2, "group_norm": 1}, "flags": "-O1",
        "instruction_sets": ["baseline"], "large": "as those of one row",
        "findings": [{"index": 7, "instruction_set": "baseline", "what": "case 7\nis off"}],
    },
    "fuzz": {
        "minutes": 0.5, "seconds_each": 3,
        "targets": {"grid": {"executions": 1200, "raised": {"ValueError": 1000}, "findings": {},
                             "branches": 90, "features": 200, "corpus": 12}},
    },
    "kills": {
        "kills": 2, "seed": 0, "undisturbed_s": 61.0, "moments_s": [3.0, 50.5], "studies": 1,
        "runs_each": 4, "differing": [],
    },
    "memory": {
        "minutes": 1, "training_steps": 40, "routings": 200, "samples": 27, "first_mib": 400.0,
        "last_mib": 400.5, "slope_mib_per_hour": 1.25, "low": -0.5, "high": 3.0, "series": [],
    },
}  # fmt: skip


def test_the_page_says_what_was_found(tmp_path):
    took = {"wall_s": 90.0, "processor_s": 600.0}
    for part, found in FOUND.items():
        figures.write(part, {"count": 3}, took, found, figures.facts(), tmp_path)
    texts = {part: figures.read(part, tmp_path) for part in page.PARTS}
    text = page.render(texts)
    assert text == page.render(json.loads(json.dumps(texts)))
    assert "3 cases (2 of route, 1 of group_norm)" in text
    assert "**1 found:**\n\n- case 7 (baseline): case 7 is off" in text
    assert "| grid | 1,200 | ValueError 1,000 | 90 | 12 |" in text
    assert "Every record was that of the undisturbed study" in text
    assert "+1.2 MiB an hour (-0.5 to +3.0" in text and "90 s, 10 min of processor time" in text
    assert {part: command.num_findings(part, found) for part, found in FOUND.items()} == {
        "ops": 1, "fuzz": 0, "kills": 0, "memory": 0
    }  # fmt: skip


def test_a_part_that_was_not_run_is_said():
    text = page.render(dict.fromkeys(page.PARTS))
    assert text.count("Not run yet.") == 4
    assert "`tests/runs/test_safe_files.py::test_yaml_executes_nothing`" in text


def test_the_committed_page_is_that_of_its_figures():
    texts = {part: figures.read(part) for part in page.PARTS}
    if any(texts.values()):
        assert command.PAGE.read_text(encoding="utf-8") == page.render(texts)
    else:
        assert not command.PAGE.exists()


def test_a_part_with_its_figures_is_left_out(tmp_path, monkeypatch, capsys):
    runs = []
    monkeypatch.setattr(kills, "run", lambda **given: runs.append(given) or FOUND["kills"])
    there = ["--results", str(tmp_path / "f"), "--page", str(tmp_path / "page.md")]
    for more in ([], [], ["--again"], ["--kills", "3"]):
        assert command.main(["kills", *there, *more]) == 0
    assert [given["kills"] for given in runs] == [20, 20, 3]
    assert "kills: has its figures for this code" in capsys.readouterr().out
    monkeypatch.setattr(figures, "code_digest", lambda: "other code")
    command.main(["kills", *there, "--kills", "3"])
    assert len(runs) == 4
    with pytest.raises(SystemExit):
        command.main(["speed"])
    assert "PART must be of ops, fuzz, kills, memory, got speed" in capsys.readouterr().err


def test_a_slope_is_in_mib_an_hour():
    """2 MiB more every half hour, exactly: 4 an hour, and no width."""
    found = memory.slope([(0.0, 100.0), (1800.0, 102.0), (3600.0, 104.0)])
    assert found == {"slope_mib_per_hour": 4.0, "low": 4.0, "high": 4.0}
    assert 10 < memory.resident_mib() < 1e6


def test_what_a_killed_study_leaves_otherwise_is_named(tmp_path, monkeypatch):
    from record_samples import make_record

    from moge_bench.runs.store import RecordStore
    from moge_bench.study.grid import parse_grid
    from moge_bench.study.manifest import make_manifest, save_manifest

    grid = parse_grid(kills.GRID, "killed.yaml")
    save_manifest(tmp_path, make_manifest(grid))
    store = RecordStore(tmp_path)
    for config in grid.configs:
        store.write(make_record(config))
    wanted = kills._kept(tmp_path)
    assert len(wanted) == 4 and kills._differences(tmp_path, wanted) == []
    store.write(make_record(grid.configs[1], 50.0, started="2027-01-01T00:00:00Z", wall_s=9.0))
    assert kills._differences(tmp_path, wanted) == []  # only its times
    store.write(make_record(grid.configs[1], 51.0))
    (tmp_path / "runs/.a.json.0.tmp").touch()
    assert kills._differences(tmp_path, wanted) == [
        f"record {grid.configs[1].run_id}", "left runs/.a.json.0.tmp"
    ]  # fmt: skip
