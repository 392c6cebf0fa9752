"""Declared contrasts on records made by hand: what enters, how it is summed, what is missing."""

import pytest
from record_samples import make_record

from moge_bench.publish.sentences import estimate_cell
from moge_bench.runs.record import RunError
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.answer import make_answer
from moge_bench.study.contrasts import Scale
from moge_bench.study.estimate import estimate
from moge_bench.study.frame import collect
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import Declaration, make_manifest
from moge_bench.study.pooled import pool

STUDY = """
name: pairs
question: q
primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}
base: {preset: tiny-vit, seeds: 4}
axes:
  moe.num_experts: [16, 64]
  method: [moe, moge]
table: {rows: [moe.num_experts, method], metrics: top1_accuracy}
"""
GAIN = {16: (1.0, 2.0, 3.0, 4.0), 64: (3.0, 3.0, 5.0, 5.0)}  # of seeds 0 to 3


def accuracy(config):
    gain = GAIN[config.moe.num_experts][config.seed] if config.method == "moge" else 0.0
    return 70.0 + config.seed + gain


class Study:
    """A study with all its records; tests take some away."""

    def __init__(self, root, text=STUDY):
        self.store = RecordStore(root)
        self.grid = parse_grid(text, "x")
        for config in self.grid.configs:
            self.store.write(make_record(config, accuracy(config)))

    def config(self, method, num_experts, seed):
        return next(
            c for c in self.grid.configs
            if (c.method, c.moe.num_experts, c.seed) == (method, num_experts, seed)
        )  # fmt: skip

    def drop(self, *run):
        self.store.path(self.config(*run).run_id).unlink()

    def results(self):
        return collect(make_manifest(self.grid), self.store, SpeedStore(self.store.root))

    def estimate(self):
        return estimate(self.results(), self.grid.file.primary)


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def test_cells_are_summed_within_a_seed_and_the_test_is_over_seeds(study):
    found = study.estimate()
    # Means of the two cells: (1 + 3) / 2, (2 + 3) / 2, (3 + 5) / 2, (4 + 5) / 2.
    assert found.contrast.values == {0: 2.0, 1: 2.5, 2: 4.0, 3: 4.5}
    sample = found.contrast.sample
    # Mean 3.25; spread sqrt((1.25^2 + 0.75^2 + 0.75^2 + 1.25^2) / 3) = 1.1902; t(0.975, 3) =
    # 3.1824: half width 3.1824 * 1.1902 / 2 = 1.8939.
    assert (sample.n, sample.mean) == (4, 3.25)
    assert sample.high == pytest.approx(3.25 + 1.8939, abs=1e-3)
    assert [cell.contrast.sample.mean for cell in found.cells] == [2.5, 4.0]
    assert (found.complete, found.missing, found.left_out) == (True, (), ())
    assert len(found.records) == 16


def test_a_seed_enters_where_every_cell_has_both_arms(study):
    study.drop("moge", 64, 1)
    study.drop("moe", 16, 3)
    found = study.estimate()
    assert found.contrast.values == {0: 2.0, 2: 4.0}
    assert (found.n, found.planned, found.complete) == (2, 4, False)
    assert [(m.arm, m.seed, m.why) for m in found.missing] == [
        ("16 moe", 3, "missing"), ("64 moge", 1, "missing"),
    ]  # fmt: skip
    # A cell by itself has the seeds that it has.
    assert [cell.contrast.sample.n for cell in found.cells] == [3, 3]


def test_a_cell_without_any_pair_is_left_out_and_said(study):
    for seed in range(4):
        study.drop("moge", 64, seed)
    found = study.estimate()
    assert found.contrast.values == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}
    assert [cell.weight for cell in found.cells] == [1.0, None]
    assert [cell.pair.at for cell in found.left_out] == [{"moe.num_experts": 64}]
    assert len(found.missing) == 4 and not found.complete
    # Of one cell of two nothing follows, whatever it says.
    assert make_answer(study.results()).primary.verdict == "cannot tell"


def test_an_arm_that_diverged_is_a_verdict_of_nothing(study):
    for seed in range(4):
        config = study.config("moge", 64, seed)
        study.store.write(make_record(config, status="diverged", diverged_at=2, metrics=[]))
    found = make_answer(study.results()).primary
    # All has run, and the cell that is left shows a gain; half of what was asked has no number.
    assert found.found.complete and found.p < 0.05
    assert (found.verdict, found.found.diverged) == ("cannot tell", 4)
    assert estimate_cell(found.found).endswith("(n = 4 seeds, 1 of 2 cells, 4 runs diverged)")


def test_only_finished_runs_enter_and_a_diverged_one_is_not_awaited(study):
    study.store.write(
        make_record(study.config("moge", 16, 0), status="diverged", diverged_at=2, metrics=[])
    )
    found = study.estimate()
    assert sorted(found.contrast.values) == [1, 2, 3]
    assert [m.why for m in found.missing] == ["diverged"] and found.complete
    error = RunError(type="KeyError", message="why")
    study.store.write(
        make_record(study.config("moge", 16, 1), status="failed", error=error, metrics=[])
    )
    study.store.write(make_record(study.config("moge", 16, 2), metrics=[]))
    found = study.estimate()
    assert [m.why for m in found.missing] == ["diverged", "failed", "not measured"]
    assert not found.complete and found.n == 1


def test_without_a_record_there_is_no_number(study):
    for config in study.grid.configs:
        study.store.path(config.run_id).unlink()
    found = study.estimate()
    assert (found.contrast, found.equivalence, found.n, found.records) == (None, None, 0, [])
    assert len(found.missing) == 16
    assert make_answer(study.results()).primary.verdict == "cannot tell"


def test_a_trend_is_a_slope_within_each_seed(tmp_path):
    found = Study(tmp_path, STUDY.replace("margin: 0.5", "margin: 0.5, over: moe.num_experts"))
    # 64 is two doublings above 16: (3 - 1) / 2, (3 - 2) / 2, (5 - 3) / 2, (5 - 4) / 2.
    assert found.estimate().contrast.values == pytest.approx({0: 1.0, 1: 0.5, 2: 1.0, 3: 0.5})


def test_of_one_place_no_trend_can_be_told(tmp_path):
    study = Study(tmp_path, STUDY.replace("margin: 0.5", "margin: 0.5, over: moe.num_experts"))
    for seed in range(4):
        study.drop("moge", 64, seed)
    assert study.estimate().contrast is None


def test_a_family_of_secondary_contrasts_is_corrected_and_the_primary_is_not(tmp_path):
    one = "- {metric: top1_accuracy, contrast: [moge, moe], margin: 9, at: {moe.num_experts: %d}}\n"
    study = Study(tmp_path, STUDY + "secondary:\n" + one % 16 + one % 64)
    answer = make_answer(study.results())
    assert answer.primary.p == answer.primary.found.contrast.sample.p
    raw = [each.found.contrast.sample.p for each in answer.secondary]
    # 1, 2, 3, 4: t = 2.5 / (1.29 / 2) = 3.87, p = 0.030. 3, 3, 5, 5: t = 4 / (1.155 / 2) = 6.93,
    # p = 0.0062. The smaller doubles.
    assert raw == pytest.approx([0.0305, 0.0062], abs=1e-4)
    assert [each.p for each in answer.secondary] == pytest.approx([raw[0], 2 * raw[1]])
    assert [each.family for each in answer.secondary] == [2, 2]
    # Equivalence has its own two: (9 - 2.5) / 0.645 = 10.1, (9 - 4) / 0.577 = 8.7.
    within = [each.found.equivalence.p for each in answer.secondary]
    assert [each.equivalence_p for each in answer.secondary] == pytest.approx(
        [max(2 * within[0], within[1]), max(2 * within[0], within[1])]
    )
    assert {each.verdict for each in answer.secondary} == {"equivalent"}


def test_the_answer_tells_whether_its_records_are_older_than_the_declaration(study):
    results = study.results()
    assert make_answer(results).declared is None  # the manifest does not tell

    def declared_at(when, digest):
        declaration = Declaration(digest=digest, declared=when)
        changed = {**vars(results), "declarations": (declaration,)}
        return make_answer(type(results)(**changed))

    digest = study.grid.file.digest
    # The records were started at 2026-01-02T03:04:05Z.
    assert declared_at("2026-01-02T03:04:04Z", digest).older == 0
    assert declared_at("2026-01-02T03:04:06Z", digest).older == 16
    assert declared_at("2026-01-02T03:04:06Z", "another").declared is None


def test_pooled_over_complete_seeds_it_is_the_t_test_over_their_means(study):
    found = study.estimate()
    pooled = pool([found])
    sample = found.contrast.sample
    assert (pooled.pairs, pooled.seeds) == (8, 4)
    assert (pooled.estimate, pooled.low, pooled.high, pooled.p) == pytest.approx(
        (sample.mean, sample.low, sample.high, sample.p)
    )


def test_pooled_a_pair_that_two_studies_share_counts_once(tmp_path):
    study = Study(tmp_path)
    other = Study(tmp_path, STUDY.replace("[16, 64]", "[64, 16]"))
    once, twice = pool([study.estimate()]), pool([study.estimate(), other.estimate()])
    assert once == twice
    # An incomplete seed counts with what it has: the mean of 7 pairs, (10 + 16 - 3) / 7.
    study.drop("moge", 64, 0)
    assert pool([study.estimate()]).estimate == pytest.approx(23 / 7)
    assert pool([study.estimate()]).pairs == 7


def test_pooled_of_few_seeds_has_no_interval(study):
    for seed in (2, 3):
        study.drop("moe", 16, seed)
        study.drop("moe", 64, seed)
    pooled = pool([study.estimate()])
    assert (pooled.seeds, pooled.low, pooled.p) == (2, None, None)


def test_the_scale_of_a_metric_reaches_the_estimate(tmp_path):
    text = STUDY.replace("tiny-vit", "tiny-lm").replace("top1_accuracy", "perplexity")
    store, grid = RecordStore(tmp_path), parse_grid(text, "x")
    for config in grid.configs:
        # e^(0.01 seed) times as high under moge, of 100 or 200: the level does not matter.
        value = (100.0 if config.moe.num_experts == 16 else 200.0) * (
            2.718281828459045 ** (0.01 * config.seed) if config.method == "moge" else 1.0
        )
        metric = {"name": "perplexity", "value": value, "unit": "", "split": "test", "step": 1}
        store.write(make_record(config, metrics=[metric]))
    results = collect(make_manifest(grid), store, SpeedStore(tmp_path))
    found = estimate(results, grid.file.primary)
    # Mean of 0, 0.01, 0.02, 0.03: 0.015; e^0.015 - 1 = 1.5113 %.
    assert found.contrast.sample.mean == pytest.approx(1.5113, abs=1e-4)
    assert found.contrast.values[2] == pytest.approx(100 * (2.718281828459045**0.02 - 1))
    assert Scale(ratio=True).inner(found.contrast.sample.mean) == pytest.approx(0.015)
