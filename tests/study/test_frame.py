import pytest
from record_samples import make_pass, make_record, make_speed

from moge_bench.analysis.numbers import Number
from moge_bench.analysis.store import VERSION, Analysis, AnalysisStore
from moge_bench.metrics import METRICS
from moge_bench.runs.record import RunError
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.frame import collect, figures, run_frame, speed_value, values_by_seed
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import make_manifest

ACCURACY = METRICS["top1_accuracy"]


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path)


def results_of(grid, store):
    return collect(make_manifest(grid), store, SpeedStore(store.root))


def test_arms_stand_as_the_table_shows_them(tiny_grid, store):
    results = results_of(tiny_grid, store)
    assert [arm.label for arm in results.arms] == [
        "dense", "4 moe", "4 1 moge", "4 2 moge", "9 moe", "9 1 moge", "9 2 moge",
    ]  # fmt: skip
    assert results.arms[0].shown == {
        "moe.num_experts": "-", "moe.group.size": "-", "method": "dense",
    }  # fmt: skip
    assert all(arm.missing == 2 for arm in results.arms)


def test_baselines_are_the_same_coordinates_under_a_weaker_method(tiny_grid, store):
    results = results_of(tiny_grid, store)
    found = {arm.label: results.baselines.get(arm.entry.arm_id) for arm in results.arms}
    assert {label: other and other.label for label, other in found.items()} == {
        "dense": None, "4 moe": "dense", "4 1 moge": "4 moe", "4 2 moge": "4 moe",
        "9 moe": "dense", "9 1 moge": "9 moe", "9 2 moge": "9 moe",
    }  # fmt: skip


def test_without_a_method_axis_the_first_arm_is_the_baseline(tiny_text, store):
    text = tiny_text.replace("method: [dense, moe, moge]", "training.weight_decay: [0.0, 0.1]")
    grid = parse_grid(text.replace("size, method]", "size, training.weight_decay]"), "x")
    results = results_of(grid, store)
    first, *others = results.arms
    assert first.entry.arm_id not in results.baselines
    assert all(results.baselines[arm.entry.arm_id] is first for arm in others)


@pytest.mark.parametrize("declares", [True, False])
def test_without_a_method_axis_other_systems_are_no_baseline(store, declares):
    primary = (
        "primary: {metric: top1_accuracy, axis: moe.group.weight, contrast: [3, 10], margin: 1}"
    )
    grid = parse_grid(
        f"""
name: x
question: Which lambda?
{primary if declares else ""}
base: {{method: moge, seeds: [0]}}
axes: {{preset: [tiny-vit, tiny-swin], moe.group.weight: [1, 3, 10]}}
table: {{rows: preset, columns: moe.group.weight, metrics: top1_accuracy}}
""",
        "x",
    )
    results = results_of(grid, store)
    at = {arm.entry.arm_id: tuple(arm.shown.values()) for arm in results.arms}
    found = {at[arm_id]: at[arm.entry.arm_id] for arm_id, arm in results.baselines.items()}
    base = 10 if declares else 1
    assert found == {
        (preset, weight): (preset, base)
        for preset in ("tiny-vit", "tiny-swin") for weight in {1, 3, 10} - {base}
    }  # fmt: skip


def test_runs_are_told_apart_by_how_they_ended(tiny_grid, store):
    moge = tiny_grid.arms[-1].configs
    store.write(make_record(moge[0], status="diverged", diverged_at=2, metrics=[]))
    error = RunError(type="KeyError", message="why")
    store.write(make_record(moge[1], status="failed", error=error, metrics=[]))
    arm = results_of(tiny_grid, store).arms[-1]
    assert (len(arm.records), arm.count("diverged"), arm.count("failed"), arm.missing) == (
        0, 1, 1, 0,
    )  # fmt: skip


def test_every_figure_has_a_column_and_every_run_a_row(tiny_grid, store):
    for config in tiny_grid.configs:
        store.write(make_record(config, 50.0 + config.seed))
    arms = {arm.arm_id: make_speed(1000.0 + i) for i, arm in enumerate(tiny_grid.arms)}
    SpeedStore(store.root).add("tiny", make_pass(arms))
    results = results_of(tiny_grid, store)
    frame = run_frame(results)
    assert len(frame) == 14
    assert list(frame["top1_accuracy.test"][:2]) == [50.0, 51.0]
    assert list(frame["tokens_per_second"][:2]) == [1000.0, 1000.0]  # one figure for all seeds
    assert set(frame["run_id"]) == {config.run_id for config in tiny_grid.configs}
    assert [name for name, _ in figures(results.study)] == [
        METRICS[name] for name in results.study.table.metrics
    ]


def test_a_metric_of_the_routing_is_the_mean_over_the_layers(tiny_grid, store):
    layers = [("test", 0.25), ("test", 0.75), ("validation", 1.0)]
    routing = [{"split": split, "dead_expert_share": share} for split, share in layers]
    store.write(make_record(tiny_grid.configs[0], routing=routing))
    arm = results_of(tiny_grid, store).arms[0]
    assert values_by_seed(arm, METRICS["dead_experts"], "test") == {0: 0.5}  # (0.25 + 0.75) / 2
    assert values_by_seed(arm, METRICS["load_entropy"], "test") == {}  # no layer has it


def test_what_was_not_measured_is_absent(tiny_grid, store):
    store.write(make_record(tiny_grid.configs[0], metrics=[]))
    arm = results_of(tiny_grid, store).arms[0]
    assert values_by_seed(arm, ACCURACY, "test") == {}
    assert speed_value(arm, METRICS["step_ms"]) is None
    assert values_by_seed(arm, METRICS["parameters"], "") == {0: 10}


def test_an_analysis_counts_if_it_is_of_the_very_run(tiny_text, store):
    grid = parse_grid(tiny_text.replace("peak_memory_mib", "diversity_output_cka"), "x")
    moe = next(arm for arm in grid.arms if arm.configs[0].method == "moe")
    analyses = AnalysisStore(store.root)
    for config, digest in zip(moe.configs, ("now", "before"), strict=True):
        code = {"commit": None, "dirty": None, "digest": "now"}
        store.write(make_record(config, code=code))
        # Two layers, 0.2 and 0.4, and a point of a curve: 0.3 is what a table shows.
        numbers = [
            Number(name="diversity_output_cka", value=value, block=block, at=at)
            for value, block, at in ((0.2, 2, None), (0.4, 3, None), (0.9, 2, "after_50"))
        ]
        analyses.write(
            Analysis(version=VERSION, run_id=config.run_id, code=digest, numbers=numbers, maps=[])
        )
    results = results_of(grid, store)
    arm = next(arm for arm in results.arms if arm.method == "moe" and arm.records)
    metric = METRICS["diversity_output_cka"]
    assert values_by_seed(arm, metric, "") == {0: pytest.approx(0.3)}
    assert (metric, "") in figures(grid.file)
