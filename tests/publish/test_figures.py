import pytest
from record_samples import make_record, make_speed
from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.publish.figures import draw_curves, draw_metrics, write_figures
from moge_bench.runs.record import CurvePoint, RecordStore
from moge_bench.study.frame import collect_lines
from moge_bench.study.grid import parse_grid

TEXT = """
name: golden
question: Is MoGE better?
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes:
  method: [dense, moe, moge]
table:
  rows: method
  metrics: [top1_accuracy, tokens_per_second, peak_memory_mib]
  splits: [validation, test]
"""
ACCURACY = {"dense": 70.0, "moe": 75.0, "moge": 76.0}


@pytest.fixture
def grid():
    return parse_grid(TEXT, "golden")


@pytest.fixture
def store(tmp_path, grid):
    """Test accuracy of seed s is the method's value plus s; the loss at step 1 is the seed's."""
    store = RecordStore(tmp_path)
    for config in grid.configs:
        curve = [
            CurvePoint(step=step, name="task_loss", split="training", value=config.seed / step)
            for step in (1, 2)
        ]
        curve.append(CurvePoint(step=1, name="top1_accuracy", split="validation", value=9.0))
        speed = {"golden": make_speed(1000.0 + ACCURACY[config.method], 20.0)}
        store.write(
            make_record(config, ACCURACY[config.method] + config.seed, speed=speed, curves=curve)
        )
    grid.save(tmp_path)
    return store


def drawn(axes):
    """Return (x, y) of every mean or median in the panel."""
    points = [container.lines[0].get_xydata()[0] for container in axes.containers]
    return [tuple(point) for point in points]


def test_panels_show_the_means_of_the_table(grid, store):
    figure = draw_metrics(grid, collect_lines(grid, store))
    accuracy, speed, memory = figure.axes
    # Seeds add 0, 1, 2: mean + 1. Two splits share a row; the second, test, stands at + 0.7 / 4.
    assert drawn(accuracy) == [(71.0, 0.175), (76.0, 1.175), (77.0, 2.175)]
    assert drawn(speed) == [(1070.0, 0.0), (1075.0, 1.0), (1076.0, 2.0)]
    assert drawn(memory) == [(20.0, 0.0), (20.0, 1.0), (20.0, 2.0)]
    bars = accuracy.containers[0].lines[2][0].get_segments()[0]
    assert bars[:, 0].tolist() == [70.0, 72.0]  # mean -+ the standard deviation, 1
    labels = [label.get_text() for label in accuracy.get_yticklabels()]
    assert labels == ["dense (n=3)", "moe (n=3)", "moge (n=3)"]


def test_curves_are_the_mean_over_seeds_of_the_training_loss(grid, store):
    (axes,) = draw_curves(grid, collect_lines(grid, store)).axes
    # Seeds 0, 1, 2: mean 1 at step 1, 1 / 2 at step 2.
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 1.0], [2.0, 0.5]]
    assert len(axes.lines) == 3


def test_a_line_without_records_is_left_out(grid, store, tmp_path):
    for config in grid.configs:
        if config.method == "moe":
            store.path(config.hash()).unlink()
    write_figures(grid, store, tmp_path / "figures")
    svg = (tmp_path / "figures/golden.svg").read_text()
    assert "moge (n=3)" in svg
    assert "moe (n=3)" not in svg


def test_the_same_records_give_the_same_bytes(grid, store, tmp_path):
    first, second = (write_figures(grid, store, tmp_path / name) for name in "ab")
    assert [path.name for path in first] == [
        "golden.png", "golden.svg", "golden_curves.png", "golden_curves.svg",
    ]  # fmt: skip
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_command_draws_every_grid_that_was_run(store, tmp_path):
    result = CliRunner().invoke(app, ["figures", "--results", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "golden.png", "golden.svg", "golden_curves.png", "golden_curves.svg",
    }  # fmt: skip


def test_grid_without_records_has_no_figure(grid, tmp_path):
    assert write_figures(grid, RecordStore(tmp_path), tmp_path / "figures") == []


def test_a_dollar_in_a_name_is_a_letter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("$a$", r"$\frac$"):  # as mathematics the second one does not parse
        (tmp_path / name).write_text("text of three words " * 20)
    text = r"""
name: dollars
question: Which file?
base: {preset: tiny-lm, seeds: [0], set: {data.tokenizer: bytes}}
axes: {data.name: [$a$, '$\frac$']}
table: {rows: data.name, metrics: perplexity}
"""
    grid, store = parse_grid(text, "dollars"), RecordStore(tmp_path)
    for config in grid.configs:
        store.write(make_record(config))
    paths = write_figures(grid, store, tmp_path / "figures")
    assert r"$\frac$" in paths[1].read_text()
