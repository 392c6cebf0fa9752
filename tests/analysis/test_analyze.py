"""From the runs of a results folder to its analyses, through the command line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from moge_bench.analysis.analyze import analyze_run
from moge_bench.analysis.pictures import principal_components
from moge_bench.analysis.probe import read_probe
from moge_bench.analysis.store import VERSION, Analysis, AnalysisStore
from moge_bench.cli import app
from moge_bench.presets import resolve
from moge_bench.runs.execute import execute_run
from moge_bench.runs.store import RecordStore
from moge_bench.training import text_task

SMALL = {"training.steps": 8, "training.batch_size": 64, "training.warmup_steps": 2,
         "moe.num_experts": 16, "model.depth": 2, "moe.blocks": [1], "model.hidden_size": 16,
         "model.num_heads": 2, "model.ffn_size": 16, "data.evaluate_test": False}  # fmt: skip
SEEDS = [resolve("tiny-vit", "moge", SMALL, seed) for seed in (3, 5)]
FIRST, SECOND = (config.run_id for config in SEEDS)
CODE = {"commit": None, "dirty": None, "digest": "abc"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_images):
    """A results folder with two seeds of one arm, and a dense run, which has no probe."""
    folder = tmp_path_factory.mktemp("results")
    for config in (*SEEDS, resolve("tiny-vit", "dense", {**SMALL, "training.steps": 1})):
        RecordStore(folder).write(execute_run(config, CODE, None, folder))
    return folder


@pytest.fixture
def results(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "results")


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    """What the first `analyze` says, and the folder that it leaves."""
    results = shutil.copytree(trained, tmp_path_factory.mktemp("analysed") / "results")
    return analyze(results), results


@pytest.fixture
def results_with_analyses(analysed, tmp_path):
    return shutil.copytree(analysed[1], tmp_path / "results")


def analyze(results):
    return CliRunner().invoke(app, ["analyze", "--results", str(results)])


def contents(results):
    files = sorted((results / "analysis").rglob("*.json"))
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


def test_makes_an_analysis_a_run_and_one_of_the_seeds(analysed):
    done, results = analysed
    assert done.exit_code == 0, done.output
    assert f"analysed: {FIRST} tiny-vit moge N=16 k=1" in done.output
    assert "3 made, 0 there already" in done.output
    arm = SEEDS[0].arm_id
    assert set(contents(results)) == {
        f"analysis/{FIRST[:2]}/{FIRST}.json", f"analysis/{SECOND[:2]}/{SECOND}.json",
        f"analysis/seeds/{arm}.json",
    }  # fmt: skip
    seeds = AnalysisStore(results).read_seeds(arm)
    assert seeds.runs == [FIRST, SECOND]
    assert -1 < seeds.value("diversity_null_cka") < 1


def test_every_measurement_is_in_it(analysed):
    _, results = analysed
    found = AnalysisStore(results).read(FIRST)
    assert {number.name.partition("_")[0] for number in found.numbers} == {
        "balance",
        "diversity",
        "dose",
        "dynamics",
        "invariance",
        "specialisation",
        "topography",
    }
    assert {number.block for number in found.numbers} == {1}
    record = RecordStore(results).read(FIRST)
    by_name = {number.name: number.value for number in found.numbers if number.at is None}
    (layer,) = record.routing
    assert by_name["balance_entropy"] == pytest.approx(layer["load_entropy_normalized"], rel=1e-5)
    assert by_name["dose_group_ratio"] == pytest.approx(layer["dose"], rel=1e-5)
    # The record's yardstick is of the whole validation split, this one of the probe's tokens.
    assert by_name["dose_group_loss"] == pytest.approx(layer["group_norm"], rel=0.05)
    assert found.value("dynamics_margin") == by_name["dynamics_margin"]
    assert found.value("no such number") is None


@pytest.fixture
def text_analysis(monkeypatch, tmp_path):
    """The analysis of a run on a little text, with k = 2 and a regularizer."""
    whole = text_task.load_corpus
    monkeypatch.setattr(
        text_task, "load_corpus", lambda name: {s: [t[0][:3000]] for s, t in whole(name).items()}
    )
    config = resolve("tiny-lm", "moe-entropy", {
        "training.steps": 4, "training.batch_size": 4, "model.context": 16, "model.depth": 1,
        "moe.blocks": [0], "data.tokenizer": "bytes", "data.attacked_share": 0.0,
        "data.evaluate_test": False, "moe.num_experts": 16, "moe.regularizer_weight": 1.0,
    })  # fmt: skip
    record = execute_run(config, CODE, None, tmp_path)
    return analyze_run(record, read_probe(tmp_path / f"probes/{config.run_id}.safetensors"))


def test_of_a_text_the_words_stand_for_the_classes(text_analysis):
    names = {number.name for number in text_analysis.numbers}
    assert "specialisation_token" in names and "specialisation_class" not in names
    assert {n.at for n in text_analysis.numbers if n.name == "invariance_agreement"} == {
        None, "words_1", "words_2", "words_5", "words_10"
    }  # fmt: skip
    (drawn,) = text_analysis.maps
    # Of English text in bytes the blank is the most frequent; -1 is every other one.
    assert (drawn.categories[0], drawn.categories[-1], len(drawn.categories)) == (ord(" "), -1, 16)


def test_every_stage_of_a_swin_is_analysed(few_images, tmp_path):
    """Its later layers have fewer tokens of an image: the same numbers of each."""
    config = resolve("tiny-swin", "moge", {
        "training.steps": 2, "training.batch_size": 8, "training.warmup_steps": 1,
        "moe.num_experts": 16, "data.evaluate_test": False,
    })  # fmt: skip
    record = execute_run(config, CODE, None, tmp_path)
    probe = read_probe(tmp_path / f"probes/{config.run_id}.safetensors")
    lengths = {layer.block: probe.length_of(layer) for layer in probe.layers()}
    assert len(set(lengths.values())) > 1
    found = analyze_run(record, probe)
    of_layer = {
        block: {number.name for number in found.numbers if number.block == block}
        for block in lengths
    }
    first, *others = of_layer.values()
    assert {"specialisation_class", "topography_preference_moran"} <= first
    assert all(names == first for names in others)
    assert [drawn.block for drawn in found.maps] == list(lengths)


def test_the_page_defines_every_number(analysed, text_analysis):
    page = (Path(__file__).parents[2] / "docs/analyses.md").read_text(encoding="utf-8")
    store = AnalysisStore(analysed[1])
    files = (store.read(FIRST), store.read_seeds(SEEDS[0].arm_id), text_analysis)
    made = {number.name for file in files for number in file.numbers}
    measurements = "|".join({name.partition("_")[0] for name in made})
    assert set(re.findall(rf"`((?:{measurements})_\w+)`", page)) == made


def test_the_map_of_a_layer(analysed):
    _, results = analysed
    (drawn,) = AnalysisStore(results).read(FIRST).maps
    assert (drawn.block, drawn.rows, drawn.cols, drawn.border) == (1, 4, 4, "torus")
    assert drawn.load == RecordStore(results).read(FIRST).routing[0]["load"]
    assert drawn.categories == list(range(10))
    assert all(lift >= 1 for lift in drawn.lift) and len(drawn.preferred) == 16
    assert max(abs(v) for row in drawn.router_colours for v in row) == 1
    assert len(drawn.router_colours) == len(drawn.router_similarity) == 16


def test_what_is_there_stays_and_is_the_same_when_made_again(results_with_analyses):
    results = results_with_analyses
    before = contents(results)
    assert "0 made, 3 there already" in analyze(results).output
    shutil.rmtree(results / "analysis")
    analyze(results)
    assert contents(results) == before


@pytest.mark.parametrize("change", [{"version": VERSION - 1}, {"code": "of another run"}])
def test_older_definitions_and_a_run_trained_anew_are_analysed_again(results_with_analyses, change):
    results = results_with_analyses
    before, path = contents(results), AnalysisStore(results).path(FIRST)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change, "numbers": []}))
    assert "1 made, 2 there already" in analyze(results).output
    assert contents(results) == before


def test_a_damaged_probe_is_named_and_stops_no_other(results):
    path = results / "probes" / f"{FIRST}.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    done = analyze(results)
    assert done.exit_code == 1
    assert f"{FIRST}.safetensors is not a probe" in done.output
    assert set(contents(results)) == {f"analysis/{SECOND[:2]}/{SECOND}.json"}


def test_a_probe_of_the_first_version_is_refused(results):
    save_file({"labels": torch.zeros(3)}, results / "probes" / f"{FIRST}.safetensors")
    done = analyze(results)
    assert done.exit_code == 1
    assert "is a probe of version 1, and 3 is read: delete it and its record" in done.output


def test_a_probe_of_a_run_without_record_is_left_alone(results):
    RecordStore(results).path(FIRST).unlink()
    done = analyze(results)
    assert done.exit_code == 0
    assert f"{FIRST}: it has no record of a finished run" in done.output


def test_a_copied_probe_is_of_another_run(results):
    probes = results / "probes"
    shutil.copy(probes / f"{SECOND}.safetensors", probes / f"{FIRST}.safetensors")
    assert f"is of the run {SECOND}" in analyze(results).output


def test_colours_are_principal_components_with_a_defined_sign():
    rows = np.array([[3.0, 0, 0], [-1, 0, 0], [-1, 1, 0], [-1, -1, 0]])
    # Along the first axis 3, -1, -1, -1, along the second 0, 0, 1, -1, over the largest, 3. Of the
    # second the two largest entries are equal: the first of them is positive.
    expected = rows / 3
    assert principal_components(rows) == pytest.approx(expected, abs=1e-12)
    assert principal_components(-rows)[:, 0] == pytest.approx(expected[:, 0])


def test_an_analysis_of_a_record_that_knows_no_code_can_be_read(tmp_path):
    """Records of schema 1 have no digest of the code."""
    store = AnalysisStore(tmp_path)
    store.write(Analysis(version=VERSION, run_id="ab12", code=None, numbers=[], maps=[]))
    assert store.read("ab12").code is None
