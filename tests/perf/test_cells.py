import pytest
from record_samples import make_record, make_speed

from moge_bench.models import build
from moge_bench.perf import cells, kernel_check
from moge_bench.presets import resolve
from moge_bench.runs import provenance
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.grid import parse_grid

pytestmark = pytest.mark.usefixtures("few_images")

TINY = {"training.steps": 3, "training.batch_size": 8, "training.warmup_steps": 1}


def tiny(method="moge", **overrides):
    return resolve("tiny-vit", method, {**TINY, **overrides})


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path)


@pytest.fixture
def speeds(tmp_path):
    return SpeedStore(tmp_path)


@pytest.fixture
def measured(monkeypatch):
    """Replace the timing by made-up figures; return the list of what was asked for."""
    calls = []

    def measure(configs):
        calls.append(configs)
        return {config.arm_id: make_speed() for config in configs}

    monkeypatch.setattr(cells, "_measure_in_fresh_process", measure)
    return calls


def finish(grid, store):
    for config in grid.configs:
        store.write(make_record(config))


class TestWhenItMeasures:
    def test_one_run_of_each_arm_stands_for_its_seeds(self, tiny_grid, store, speeds, measured):
        finish(tiny_grid, store)
        # Dense, MoE with 4 and 9 experts, MoGE with either and h = 1 or 2: 7, of the first seed.
        assert cells.measure_study(tiny_grid, store, speeds) == 7
        assert [config.seed for config in measured[0]] == [0] * 7
        (timed,) = speeds.passes("tiny")
        assert set(timed.arms) == {arm.arm_id for arm in tiny_grid.arms}
        assert timed.machine["cpu"] and timed.build["source_hash"]

    def test_nothing_for_a_table_without_speeds(self, tiny_text, store, speeds, measured):
        metrics = "metrics: [top1_accuracy, peak_memory_mib, tokens_per_second]"
        grid = parse_grid(tiny_text.replace(metrics, "metrics: top1_accuracy"), "g")
        finish(grid, store)
        assert cells.measure_study(grid, store, speeds) == 0
        assert measured == []

    def test_training_evidence_is_never_rewritten(self, tiny_grid, store, speeds, measured):
        finish(tiny_grid, store)
        before = {path: path.stat().st_mtime_ns for path in store.runs.rglob("*.json")}
        assert cells.measure_study(tiny_grid, store, speeds) == 7
        assert cells.measure_study(tiny_grid, store, speeds) == 0  # nothing the second time
        assert len(measured) == 1
        assert {path: path.stat().st_mtime_ns for path in store.runs.rglob("*.json")} == before

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("extension_build", {"source_hash": "another"}),
            ("code_digest", "another"),
            ("machine", {"cpu": "another"}),
            ("versions", {"torch": "another"}),
        ],
    )
    def test_again_when_what_it_depends_on_changes(
        self, tiny_grid, store, speeds, measured, monkeypatch, name, value
    ):
        finish(tiny_grid, store)
        cells.measure_study(tiny_grid, store, speeds)
        monkeypatch.setattr(provenance, name, lambda: value)
        assert cells.measure_study(tiny_grid, store, speeds) == 7
        first, second = speeds.passes("tiny")  # the older one is kept: it is of another condition
        assert first.key != second.key

    def test_failed_and_missing_runs_are_left_out(self, tiny_grid, store, speeds, measured):
        dense, failed = tiny_grid.configs[0], tiny_grid.configs[-1]
        store.write(make_record(dense))
        error = {"type": "ValueError", "message": "no"}
        store.write(make_record(failed, status="failed", error=error, metrics=[]))
        assert cells.measure_study(tiny_grid, store, speeds) == 1
        assert [set(each.arms) for each in speeds.passes("tiny")] == [{dense.arm_id}]


def test_measures_rate_and_exact_memory(monkeypatch):
    monkeypatch.setattr(cells, "BUDGET_S", 0.0)
    configs = [tiny("dense"), tiny("moe")]
    first, second = cells.measure(configs), cells.measure(configs)
    for config in configs:
        figure = first[config.arm_id]
        assert figure["tokens_per_second"]["n"] == cells.MIN_ROUNDS
        # 8 images of 4 x 4 patches and a class token a step.
        seconds = 8 * 17 / figure["tokens_per_second"]["median"]
        assert figure["step_ms"]["median"] == pytest.approx(1000 * seconds)
    dense, moe = (config.arm_id for config in configs)
    assert 0 < first[dense]["peak_memory_mib"] < first[moe]["peak_memory_mib"]
    # Bytes are counted, not sampled: the same twice.
    assert [f["peak_memory_mib"] for f in first.values()] == [
        f["peak_memory_mib"] for f in second.values()
    ]


class TestCorrectnessGate:
    def test_passes_for_the_kernels_as_they_are(self):
        kernel_check.check_kernels([tiny("dense"), tiny("moe"), tiny("moge", **{"moe.top_k": 2})])

    def test_names_what_is_wrong(self, monkeypatch):
        genuine = build.build_moe_layer

        def wrong(model, moe):
            layer = genuine(model, moe)
            if moe.backend != "reference":
                forward = layer.forward

                def perturbed(x):
                    y, aux = forward(x)
                    return y * (1 + 1e-4), aux

                layer.forward = perturbed
            return layer

        monkeypatch.setattr(build, "build_moe_layer", wrong)
        with pytest.raises(RuntimeError, match=r"tiny-vit moge N=64.*: y differs from the ref"):
            kernel_check.check_kernels([tiny("moge")])

    def test_nothing_is_timed_after_a_failure(self, monkeypatch):
        def fail(_):
            raise RuntimeError("y differs")

        sent = []
        monkeypatch.setattr(cells, "check_kernels", fail)
        monkeypatch.setattr(cells, "measure", lambda _: pytest.fail("it was timed"))
        sender = type("Sender", (), {"send": staticmethod(sent.append)})
        cells._child([tiny().model_dump_json()], sender)
        assert sent == ['{"error": "RuntimeError: y differs"}']


def test_rounds_fit_the_budget(monkeypatch):
    steps = {"a": lambda: None, "b": lambda: None}
    assert cells._affordable_rounds(steps) == cells.MAX_ROUNDS
    monkeypatch.setattr(cells, "BUDGET_S", 0.0)
    assert cells._affordable_rounds(steps) == cells.MIN_ROUNDS


def test_the_key_depends_on_the_build_and_the_arms_and_not_on_the_seed(monkeypatch):
    def key(*methods, seed=0):
        configs = [resolve("tiny-vit", method, TINY, seed) for method in methods]
        return cells.speed_key({config.arm_id: config for config in configs})

    assert key("moe", "moge", seed=1) == key("moe", "moge")
    assert key("moe") != key("moe", "moge")
    before = key("moe")
    monkeypatch.setattr(provenance, "extension_build", lambda: {"source_hash": "changed"})
    assert key("moe") != before
