import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from study_samples import ONE_SEED, make_study, read_study
from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.methods import METHODS
from moge_bench.publish.captions import Captions
from moge_bench.publish.charts import draw_cost, draw_differences, draw_quality
from moge_bench.publish.conditions import Conditions
from moge_bench.publish.curves import draw_curves
from moge_bench.publish.design import design
from moge_bench.publish.figures import write_figures
from moge_bench.publish.numbers import shown_numbers
from moge_bench.publish.panels import pages
from moge_bench.runs.store import RecordStore

NUMERIC = """
name: golden
question: Which lambda?
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes:
  method: [moe, moge]
  moe.group.weight: [1.0, 4.0, 16.0]
table: {rows: moe.group.weight, columns: method, metrics: [top1_accuracy, tokens_per_second]}
"""
METHODS_ALONE = """
name: golden
question: Which method?
base: {preset: tiny-vit, seeds: [0, 1]}
axes: {method: [dense, moe, moge]}
table: {rows: method, metrics: top1_accuracy}
"""


def parts(root):
    """Return what the figures of the study are drawn from."""
    results = read_study(root)
    captions = Captions(results, Conditions(results), root / "studies/golden")
    return results, design(results), shown_numbers(results), captions


def means(axes):
    """Return (x, y) of every ring in a panel."""
    return [tuple(map(float, each.lines[0].get_xydata()[0])) for each in axes.containers]


def dots(axes, marker="."):
    return [line for line in axes.lines if line.get_marker() == marker]


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def test_a_numeric_axis_is_x_on_its_scale_and_the_method_a_colour(tmp_path):
    make_study(tmp_path, NUMERIC)
    _, plan, numbers, captions = parts(tmp_path)
    # log: 1, 4, 16 are evenly spaced. moe has no lambda: it stands to the left.
    assert plan.x_title == "lambda (log scale)"
    assert plan.ticks == ((-1.2, "moe"), (0.0, "1.0"), (1.0, "4.0"), (2.0, "16.0"))
    (figure,) = draw_quality(plan, numbers, captions)
    (axes,) = visible(figure)
    # Seeds add 0, 1, 2 to 75 and 0, 2, 4 to 76.
    assert means(axes) == [(-1.2, 76.0), (0.0, 78.0), (1.0, 78.0), (2.0, 78.0)]
    seeds = dots(axes)
    assert [dot.get_ydata().tolist() for dot in seeds] == [[75, 76, 77]] + 3 * [[76, 78, 80]]
    assert [dot.get_color() for dot in seeds[:2]] == [METHODS[m].colour for m in ("moe", "moge")]
    # 78 -+ t(0.975, 2) 2 / sqrt(3) = 4.97
    (bar,) = axes.containers[1].lines[2][0].get_segments()
    assert bar[:, 1] == pytest.approx([78 - 4.968, 78 + 4.968], abs=1e-3)
    assert axes.get_ylabel() == "test top-1 (%)\nhigher is better"


def test_a_study_of_methods_has_them_on_x(tmp_path):
    make_study(tmp_path, METHODS_ALONE)
    _, plan, numbers, captions = parts(tmp_path)
    (figure,) = draw_quality(plan, numbers, captions)
    (axes,) = visible(figure)
    assert means(axes) == [(0.0, 70.5), (1.0, 75.5), (2.0, 77.0)]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["dense", "moe", "moge"]
    assert not any(each.has_yerr for each in axes.containers)  # two seeds: no interval


def test_other_axes_and_splits_are_panels_of_at_most_six(tmp_path):
    text = (
        ONE_SEED
        + """
axes:
  method: [moe, moge]
  moe.num_experts: [9, 16, 25]
  training.batch_size: [8, 16]
  training.steps: [50, 60]
table:
  rows: [training.steps, training.batch_size, moe.num_experts, method]
  metrics: top1_accuracy
  splits: [validation, test]
"""
    )
    make_study(tmp_path, text, speed=False)
    _, plan, numbers, captions = parts(tmp_path)
    assert plan.x == "moe.num_experts"
    assert [panel.title for panel in plan.panels] == [
        f"steps {steps}, batch size {size}" for steps in (50, 60) for size in (8, 16)
    ]
    figures = list(draw_quality(plan, numbers, captions))
    assert [len(visible(figure)) for figure in figures] == [6, 2]
    assert visible(figures[0])[1].get_title() == "steps 50, batch size 8, test"


def test_differences_are_paired_with_their_interval(tmp_path):
    make_study(tmp_path)
    results, _, numbers, captions = parts(tmp_path)
    (figure,) = draw_differences(results, numbers, captions)
    (axes,) = visible(figure)
    # moe - dense: 5 for every seed; moge - moe: 1, 2, 3.
    assert [x for x, _ in means(axes)] == [5.0, 2.0, 2.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "moe - dense", "moge, group size 2 - moe", "moge, group size 3 - moe",
    ]  # fmt: skip
    assert dots(axes)[1].get_xdata().tolist() == [1.0, 2.0, 3.0]
    assert not axes.containers[0].has_xerr  # no spread
    (bar,) = axes.containers[1].lines[2][0].get_segments()
    assert bar[:, 0] == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3)


def test_cost_shows_every_arm_once(tmp_path):
    make_study(tmp_path)
    results, _, numbers, captions = parts(tmp_path)
    (figure,) = draw_cost(results, numbers, captions)
    memory, speed = ([dot.get_xdata()[0] for dot in dots(axes, "o")] for axes in figure.axes)
    assert memory == [10.0, 20.0, 20.5, 20.5]
    assert speed == [2000.0, 1000.0, 990.0, 990.0]


def test_curves_are_the_mean_over_seeds_of_the_training_loss(tmp_path):
    make_study(tmp_path, METHODS_ALONE.replace("[0, 1]", "[0, 1, 2]"))
    _, plan, _, captions = parts(tmp_path)
    (figure,) = draw_curves(plan, captions)
    (axes,) = visible(figure)
    # Seeds 0, 1, 2: mean 1 at step 1, 1 / 2 at step 2.
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 1.0], [2.0, 0.5]]
    assert len(axes.lines) == 3


def test_pages_say_what_they_leave_out():
    assert list(pages([1, 2], 6)) == [([1, 2], "")]
    assert [said for _, said in pages(range(7), 6)] == ["Page 1 of 2.", "Page 2 of 2."]
    assert list(pages(range(26), 6))[-1][1] == "Page 4 of 4. 2 more are in table.csv alone."


def test_nothing_lies_over_anything_else(tmp_path):
    make_study(tmp_path, NUMERIC)
    _, plan, numbers, captions = parts(tmp_path)
    (figure,) = draw_quality(plan, numbers, captions)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in visible(figure)]
    boxes += [artist.get_window_extent(renderer) for artist in (*figure.texts, *figure.artists)]
    assert len(boxes) == 1 + 2 + 1  # panel; question and note; legend
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_an_arm_without_records_is_left_out(tmp_path):
    grid = make_study(tmp_path, METHODS_ALONE, speed=False)
    for config in grid.configs:
        if config.method == "dense":
            RecordStore(tmp_path).path(config.run_id).unlink()
    write_figures(read_study(tmp_path), tmp_path / "figures")
    svg = (tmp_path / "figures/quality.svg").read_text()
    assert ">moge<" in svg
    assert ">dense<" not in svg


def test_the_same_records_give_the_same_bytes(tmp_path):
    make_study(tmp_path, METHODS_ALONE, speed=False)
    results = read_study(tmp_path)
    first, second = (
        write_figures(results, tmp_path / name / "results/studies/golden") for name in "ab"
    )
    assert [path.name for path in first] == [
        f"{name}.{kind}" for name in ("quality", "differences", "curves") for kind in ("png", "svg")
    ]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_the_command_draws_every_study_and_removes_what_is_old(tmp_path):
    make_study(tmp_path, METHODS_ALONE, speed=False)
    old = tmp_path / "studies/golden/quality_2.png"
    old.write_bytes(b"")
    result = CliRunner().invoke(app, ["figures", "--results", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert not old.exists()
    assert (tmp_path / "studies/golden/quality.png").stat().st_size > 1000


def test_a_study_without_records_has_no_figure(tmp_path):
    grid = make_study(tmp_path, METHODS_ALONE, speed=False)
    for config in grid.configs:
        RecordStore(tmp_path).path(config.run_id).unlink()
    assert write_figures(read_study(tmp_path), tmp_path / "figures") == []


def test_a_dollar_in_a_name_is_a_letter(tmp_path):
    # As mathematics it does not parse.
    make_study(tmp_path, METHODS_ALONE.replace("Which method", r"Is $\frac$ better"), speed=False)
    paths = write_figures(read_study(tmp_path), tmp_path / "figures")
    assert r"$\frac$" in paths[1].read_text()
