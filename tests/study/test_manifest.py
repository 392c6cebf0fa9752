import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from record_samples import STUDY, make_record

from moge_bench.data import registry
from moge_bench.presets import tiny
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.frame import collect
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import (
    compare_manifest,
    differing,
    make_manifest,
    manifest_path,
    read_manifest,
    save_manifest,
    study_paths,
)


def save(root, text):
    """Save the manifest of a study; return what was said of the one before."""
    manifest = make_manifest(parse_grid(text, "x"))
    notes = compare_manifest(root, manifest)
    save_manifest(root, manifest)
    return notes


def test_round_trip(tiny_grid, tmp_path):
    manifest = make_manifest(tiny_grid)
    assert compare_manifest(tmp_path, manifest) == []
    save_manifest(tmp_path, manifest)
    path = manifest_path(tmp_path, "tiny")
    assert path == tmp_path / "studies/tiny/manifest.json"
    assert read_manifest(path) == manifest
    assert study_paths(tmp_path) == [path]
    assert sorted(manifest.run_ids) == sorted(config.run_id for config in tiny_grid.configs)
    assert [arm.coordinates for arm in manifest.arms] == [a.coordinates for a in tiny_grid.arms]


def test_a_study_does_not_depend_on_todays_presets(tiny_grid, tmp_path, monkeypatch):
    save_manifest(tmp_path, make_manifest(tiny_grid))
    store = RecordStore(tmp_path)
    for config in tiny_grid.configs:
        store.write(make_record(config))
    monkeypatch.setattr("moge_bench.presets.PRESETS", {})
    monkeypatch.delattr(tiny, "PRESETS")
    results = collect(read_manifest(study_paths(tmp_path)[0]), store, SpeedStore(tmp_path))
    assert [len(arm.records) for arm in results.arms] == [2] * 7


def test_another_study_under_a_taken_name_is_refused(tiny_text, tmp_path):
    save(tmp_path, tiny_text)
    other = tiny_text.replace("Does it run?", "Does it fly?")
    with pytest.raises(ValueError, match="another study called 'tiny', which asks 'Does it run"):
        save(tmp_path, other)
    assert read_manifest(manifest_path(tmp_path, "tiny")).study.question == "Does it run?"


def test_what_changed_in_a_study_is_said(tiny_text, tmp_path):
    save(tmp_path, tiny_text)
    # 9 experts are gone, 16 are new: 3 methods x 2 sizes each.
    notes = save(tmp_path, tiny_text.replace("[4, 9]", "[4, 16]"))
    assert notes == [
        "since the last time 6 combinations of axis values were added",
        "since the last time 6 combinations of axis values were taken away",
    ]
    longer = tiny_text.replace("[4, 9]", "[4, 16]").replace("steps: 3", "steps: 4")
    notes = save(tmp_path, longer)
    assert notes == ["since the last time training.steps was changed: 12 arms are other runs now"]
    assert save(tmp_path, longer) == []


PRIMARY = "primary: {metric: top1_accuracy, contrast: [moge, moe], margin: %s}\nbase:"


def test_what_is_declared_keeps_its_time(tiny_text, tmp_path, monkeypatch):
    times = iter(["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"])
    monkeypatch.setattr("moge_bench.study.manifest._now", lambda: next(times))
    path = manifest_path(tmp_path, "tiny")
    save(tmp_path, tiny_text)
    assert read_manifest(path).declarations == ()  # nothing is declared
    declared = tiny_text.replace("base:", PRIMARY % "0.5")
    for _ in range(2):
        assert save(tmp_path, declared) == []
        manifest = read_manifest(path)
        assert manifest.study.primary.contrast == ("moge", "moe")
        assert [(d.digest, d.declared) for d in manifest.declarations] == [
            (manifest.study.digest, "2026-01-01T00:00:00Z")
        ]
    # Tables may change; a margin moved later is a declaration of its own, and it is said.
    assert (
        save(
            tmp_path,
            declared.replace(
                "metrics: [top1_accuracy, ", "metrics: [top1_accuracy, load_entropy, "
            ),
        )
        == []
    )
    (note,) = save(tmp_path, declared.replace("margin: 0.5", "margin: 0.9"))
    assert note.startswith("since the last time what it declares was changed: ")
    times = [each.declared for each in read_manifest(path).declarations]
    assert times == ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"]


def test_a_file_that_says_the_same_otherwise_declares_nothing_new(tiny_text, tmp_path, monkeypatch):
    """A setting that every run has anyway, named: as where a default is about to change."""
    times = iter(["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"])
    monkeypatch.setattr("moge_bench.study.manifest._now", lambda: next(times))
    declared = tiny_text.replace("base:", PRIMARY % "0.5")
    save(tmp_path, declared)
    assert save(tmp_path, declared.replace("  set:", "  set:\n    training.ema_decay: null")) == []
    found = read_manifest(manifest_path(tmp_path, "tiny")).declarations
    assert len({each.digest for each in found}) == len(found) == 2
    assert {each.declared for each in found} == {"2026-01-01T00:00:00Z"}
    # Other runs are another declaration.
    save(tmp_path, declared.replace("moe.num_experts: [4, 9]", "moe.num_experts: [4, 16]"))
    last = read_manifest(manifest_path(tmp_path, "tiny")).declarations[-1]
    assert last.declared == "2026-02-01T00:00:00Z"


def test_other_runs_under_the_same_declaration_are_kept_with_their_time(tmp_path, monkeypatch):
    """A preset that changes makes other runs of the same file: the declaration does not show it."""
    monkeypatch.chdir(tmp_path)
    times = iter(f"2026-0{month}-01T00:00:00Z" for month in range(1, 9))
    monkeypatch.setattr("moge_bench.study.manifest._now", lambda: next(times))
    corpus, root = tmp_path / "c.txt", tmp_path / "results"
    text = """
name: text
question: q
primary: {metric: perplexity, contrast: [moe, dense], margin: 1}
base: {preset: tiny-lm, data: c.txt, seeds: [0]}
axes: {method: [dense, moe]}
table: {rows: method, metrics: perplexity}
"""
    path = manifest_path(root, "text")
    for words in ("some words ", "some words ", "other words "):
        corpus.write_text(words * 100)
        registry._digest.cache_clear()
        save(root, text)
        found = read_manifest(path)
        assert [each.declared for each in found.declarations] == ["2026-01-01T00:00:00Z"]
        changed = [(each.changed, each.what) for each in found.changes]
        what = "the content of its data was changed: 2 arms are other runs now"
        assert changed == ([] if words == "some words " else [("2026-02-01T00:00:00Z", (what,))])
    # What the declaration shows is none of these.
    save(root, text.replace("margin: 1", "margin: 2"))
    found = read_manifest(path)
    assert (len(found.declarations), len(found.changes)) == (2, 1)


def test_an_edited_corpus_is_another_run_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "c.txt"
    text = """
name: text
question: q
base: {preset: tiny-lm, data: c.txt, seeds: [0]}
axes: {method: [dense, moe]}
table: {rows: method, metrics: perplexity}
"""
    corpus.write_text("some words " * 100)
    save(tmp_path / "results", text)
    before = read_manifest(manifest_path(tmp_path / "results", "text")).run_ids
    corpus.write_text("other words " * 100)
    registry._digest.cache_clear()
    assert save(tmp_path / "results", text) == [
        "since the last time the content of its data was changed: 2 arms are other runs now"
    ]
    after = read_manifest(manifest_path(tmp_path / "results", "text")).run_ids
    assert not set(before) & set(after)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a manifest: "),
        ("[]", "is not a manifest: "),
        (json.dumps({"schema": 2, "study": {}, "arms": []}), "schema must be 1, got 2"),
    ],
)
def test_a_damaged_manifest_is_named_with_what_to_do(tmp_path, content, message):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value) and "`moge-bench ablate`" in str(caught.value)


def test_a_folder_without_studies_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"no study was run in .*`moge-bench ablate` runs one"):
        study_paths(tmp_path)


def test_differing_paths_of_nested_settings():
    a = {"x": 1, "m": {"y": 2, "z": 3}, "gone": 0}
    assert differing(a, {"x": 1, "m": {"y": 5, "z": 3}, "new": 0}) == ["m.y", "gone", "new"]
    assert differing(a, a) == []


def test_declarations_made_at_once_are_all_kept(tmp_path):
    """Eight margins, 0.1 to 0.8, declared by as many threads, which locks keep apart."""
    texts = [STUDY.replace("margin: 0.5", f"margin: 0.{number}") for number in range(1, 9)]
    manifests = [make_manifest(parse_grid(text, "x")) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: save_manifest(tmp_path, each), manifests))
    found = read_manifest(manifest_path(tmp_path, "gain")).declarations
    assert sorted(each.digest for each in found) == sorted(each.study.digest for each in manifests)
