import copy

import pytest
from record_samples import make_record, make_speed

from moge_bench.config import config_hash
from moge_bench.models import build
from moge_bench.perf import cells, kernel_check
from moge_bench.presets import resolve
from moge_bench.runs.record import RecordStore, stable_part
from moge_bench.study.grid import parse_grid

TINY = {"training.steps": 3, "training.batch_size": 8, "training.warmup_steps": 1}


def tiny(method="moge", **overrides):
    return resolve("tiny-vit", method, {**TINY, **overrides})


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path)


@pytest.fixture
def measured(monkeypatch):
    """Replace the timing by made-up figures; return the list of what was asked for."""
    calls = []
    figures = {
        name: make_speed(1000.0, 2.0)[name]
        for name in ("tokens_per_second", "step_ms", "peak_memory_mib", "peak_memory_source",
                     "device")
    }  # fmt: skip

    def measure(configs):
        calls.append(configs)
        return {config_hash(c.without_seed()): copy.deepcopy(figures) for c in configs}

    monkeypatch.setattr(cells, "_measure_in_fresh_process", measure)
    return calls


class TestWhenItMeasures:
    def test_one_config_of_each_point_and_every_seed_gets_it(self, tiny_grid, store, measured):
        for config in tiny_grid.configs:
            store.write(make_record(config))
        # Dense, MoE with 4 and 9 experts, MoGE with either and h = 1 or 2: 7, of the first seed.
        assert cells.measure_grid(tiny_grid, store) == 7
        assert [config.seed for config in measured[0]] == [0] * 7
        for config in tiny_grid.configs:
            figure = store.read(config.hash()).speed["tiny"]
            assert figure.tokens_per_second.median == 1000.0
            assert len(figure.compared_with) == 7

    def test_nothing_for_a_table_without_speeds(self, tiny_text, store, measured):
        metrics = "metrics: [top1_accuracy, peak_memory_mib, tokens_per_second]"
        grid = parse_grid(tiny_text.replace(metrics, "metrics: top1_accuracy"), "g")
        for config in grid.configs:
            store.write(make_record(config))
        assert cells.measure_grid(grid, store) == 0
        assert measured == []

    def test_nothing_the_second_time(self, tiny_grid, store, measured):
        for config in tiny_grid.configs:
            store.write(make_record(config))
        cells.measure_grid(tiny_grid, store)
        before = {path: path.read_bytes() for path in store.runs.iterdir()}
        assert cells.measure_grid(tiny_grid, store) == 0
        assert len(measured) == 1
        assert {path: path.read_bytes() for path in store.runs.iterdir()} == before

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("extension_build", {"source_hash": "another"}),
            ("timed_code_hash", "another"),
            ("machine", {"cpu": "another"}),
            ("versions", {"torch": "another"}),
        ],
    )
    def test_again_when_what_it_depends_on_changes_and_nothing_else_does(
        self, tiny_grid, store, measured, monkeypatch, name, value
    ):
        for config in tiny_grid.configs:
            store.write(make_record(config))
        cells.measure_grid(tiny_grid, store)
        before = [stable_part(store.read(config.hash())) for config in tiny_grid.configs]
        monkeypatch.setattr(provenance, name, lambda: value)
        assert cells.measure_grid(tiny_grid, store) == 7
        assert [stable_part(store.read(config.hash())) for config in tiny_grid.configs] == before

    def test_failed_and_missing_cells_are_left_out(self, tiny_grid, store, measured):
        dense, failed = tiny_grid.configs[0], tiny_grid.configs[-1]
        store.write(make_record(dense))
        error = {"type": "ValueError", "message": "no"}
        store.write(make_record(failed, status="failed", error=error, metrics=[]))
        assert cells.measure_grid(tiny_grid, store) == 1
        assert store.read(failed.hash()).speed == {}

    def test_two_grids_keep_their_figures_of_a_shared_run(
        self, tiny_grid, tiny_text, store, measured
    ):
        other = parse_grid(
            tiny_text.replace("[4, 9]", "[9]").replace("name: tiny", "name: other"), "g"
        )
        for config in tiny_grid.configs:
            store.write(make_record(config))
        assert cells.measure_grid(tiny_grid, store) == 7
        assert cells.measure_grid(other, store) == 4
        assert cells.measure_grid(tiny_grid, store) == 0
        shared = store.read(other.configs[0].hash()).speed
        assert {name: len(s.compared_with) for name, s in shared.items()} == {
            "tiny": 7, "other": 4,
        }  # fmt: skip


def test_measures_rate_and_exact_memory(monkeypatch):
    monkeypatch.setattr(cells, "BUDGET_S", 0.0)
    configs = [tiny("dense"), tiny("moe")]
    first, second = cells.measure(configs), cells.measure(configs)
    for config in configs:
        figure = first[config_hash(config.without_seed())]
        assert figure["tokens_per_second"]["n"] == cells.MIN_ROUNDS
        # 8 images of 4 x 4 patches and a class token a step.
        seconds = 8 * 17 / figure["tokens_per_second"]["median"]
        assert figure["step_ms"]["median"] == pytest.approx(1000 * seconds)
    dense, moe = (config_hash(config.without_seed()) for config in configs)
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
        with pytest.raises(RuntimeError, match=r"tiny-vit moge N=16.*: y differs from the ref"):
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
