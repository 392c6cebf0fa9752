import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from record_samples import make_record
from study_samples import ONE_SEED, ROWS, golden_accuracy, make_study, read_answer

from moge_bench.methods import METHODS
from moge_bench.publish.captions import Captions
from moge_bench.publish.comparisons import answered_in, headline, listed
from moge_bench.publish.conditions import Conditions
from moge_bench.publish.design import design
from moge_bench.publish.figures import draw_answer
from moge_bench.publish.numbers import shown_numbers
from moge_bench.runs.store import RecordStore

TUNING = """
name: golden
question: Which lambda?
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes:
  method: [moe, moge]
  moe.group.weight: [1.0, 4.0, 16.0]
table: {rows: moe.group.weight, columns: method, metrics: [top1_accuracy, tokens_per_second]}
"""
DOSE = TUNING.replace(
    "base:",
    "primary: {metric: top1_accuracy, contrast: [moge, moe], at: {moe.group.weight: 4.0}, "
    "margin: 0.5}\nbase:",
).replace("tokens_per_second", "dose, score_entropy")
SLOPE = """
name: golden
question: Does the gain grow?
primary: {metric: top1_accuracy, contrast: [moge, moe], over: moe.num_experts, margin: 0.25}
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes:
  moe.num_experts: [16, 64, 256]
  method: [moe, moge]
table: {rows: moe.num_experts, columns: method, metrics: [top1_accuracy]}
"""
SIZES = """
name: golden
question: Which group size?
primary: {metric: top1_accuracy, contrast: [3, 4], axis: moe.group.size, margin: 0.5}
base: {preset: tiny-vit, method: moge, seeds: [0, 1, 2]}
axes: {moe.group.size: [2, 3, 4]}
table: {rows: moe.group.size, metrics: [top1_accuracy]}
"""
CONTROLS = """
name: golden
question: Is it the topography?
primary: {metric: top1_accuracy, contrast: [moge, moge-shuffled], margin: 0.5}
secondary:
  - {metric: top1_accuracy, contrast: [moge, moe], margin: 1.0}
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes: {method: [moe, moge, moge-shuffled]}
table: {rows: method, metrics: [top1_accuracy, score_entropy]}
"""
METHODS_ALONE = """
name: golden
question: Which method?
base: {preset: tiny-vit, seeds: [0, 1]}
axes: {method: [dense, moe, moge]}
table: {rows: method, metrics: top1_accuracy}
"""


def shuffled_too(config):
    """moe 75, 76, 77; moge 76, 78, 80; moge-shuffled 75.5, 76.5, 77.5."""
    return 75.5 + config.seed if config.method == "moge-shuffled" else golden_accuracy(config)


def with_routing(root, grid, dose=2.0):
    """Write the records again with a dose of MoGE, and of every arm the entropy of its scores."""
    for config in grid.configs:
        value = dose if config.method == "moge" else 0.0
        of = {"block": 2, "split": "test", "load": [1], "dead_expert_share": 0.0, "dose": value,
              "score_entropy_normalized": 0.9}  # fmt: skip
        curves = [{"step": 1, "name": f"dose_group_block{block}", "split": "training",
                   "value": value} for block in config.moe.blocks]  # fmt: skip
        record = make_record(config, shuffled_too(config), routing=[of], curves=curves)
        RecordStore(root).write(record)


def parts(root):
    """Return what the figures of the study are drawn from."""
    answer = read_answer(root)
    results = answer.results
    captions = Captions(results, Conditions(results), root / "studies/golden")
    return answer, shown_numbers(results), captions


def answer_figures(root):
    return list(draw_answer(*parts(root)))


def means(axes):
    """Return (x, y) of every ring in a panel."""
    return [tuple(map(float, each.lines[0].get_xydata()[0])) for each in axes.containers]


def filled(axes):
    """Return (x, y) of every filled mark."""
    lines = [each.lines[0] for each in axes.containers]
    return [
        tuple(map(float, line.get_xydata()[0]))
        for line in lines
        if line.get_markerfacecolor() == line.get_color()
    ]


def dots(axes, marker="."):
    return [line for line in axes.lines if line.get_marker() == marker]


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_over_a_numeric_axis_is_the_difference_at_each_value(tmp_path):
    with_routing(tmp_path, make_study(tmp_path, DOSE, speed=False))
    (figure,) = answer_figures(tmp_path)
    axes, dose, entropy = visible(figure)
    # moge - moe: 1, 2, 3 in seeds 0, 1, 2, whatever lambda. log: 1, 4, 16 are evenly spaced.
    assert [(round(x, 1), y) for x, y in means(axes)] == [(0.0, 2.0), (1.0, 2.0), (2.0, 2.0)]
    assert [dot.get_ydata().tolist() for dot in dots(axes)] == 3 * [[1.0, 2.0, 3.0]]
    assert {dot.get_color() for dot in dots(axes)} == {METHODS["moge"].colour}
    assert [round(x, 1) for x, _ in filled(axes)] == [1.0]  # lambda 4 is declared
    # 2 -+ t(0.975, 2) 1 / sqrt(3) = 2.484
    (bar,) = axes.containers[1].lines[2][0].get_segments()
    assert bar[:, 1] == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3)
    (band,) = axes.patches
    assert (band.get_y(), band.get_height()) == (-0.5, 1.0)
    assert axes.get_ylabel() == "difference in\ntest top-1 (points)\nhigher is better"
    # moe has no lambda: it stands to the left, and has no dose.
    assert [y for _, y in means(dose)] == 3 * [2.0]
    assert [y for _, y in means(entropy)] == 4 * [0.9]
    assert [text.get_text() for text in entropy.get_xticklabels()] == ["moe", "1", "4", "16"]
    # p = 0.074: t = 2 / (1 / sqrt(3)) = 3.46 with 2 degrees of freedom.
    assert texts(figure)[1] == (
        "Cannot tell: moge against moe, +2.00 [-0.48; +4.48] points of test top-1 at lambda 4, "
        "n = 3 seeds"
    )


def test_a_slope_has_its_line_and_its_margin_through_the_middle(tmp_path):
    # moge - moe is 0, 1, 2 at N = 16, 64, 256: half a point a doubling, the same in every seed.
    gain = {16: 0.0, 64: 1.0, 256: 2.0}
    make_study(
        tmp_path, SLOPE, speed=False,
        accuracy=lambda c: 75 + c.seed + (gain[c.moe.num_experts] if c.method == "moge" else 0),
    )  # fmt: skip
    (figure,) = answer_figures(tmp_path)
    (axes,) = visible(figure)
    (line,) = [each for each in axes.lines if each.get_linestyle() == "--"]
    assert line.get_ydata() == pytest.approx([0.0, 1.0, 2.0])
    (fan,) = [each for each in axes.collections if each.get_alpha()]
    # A quarter of a point a doubling, two doublings from the middle: 1 -+ 0.5.
    assert fan.get_datalim(axes.transData).intervaly == pytest.approx([0.5, 1.5])
    assert len(filled(axes)) == 3


def test_values_of_x_are_compared_with_the_baseline_among_them(tmp_path):
    accuracy = {2: 74.0, 3: 76.0, 4: 75.0}
    make_study(tmp_path, SIZES, speed=False, accuracy=lambda c: accuracy[c.moe.group.size] + c.seed)
    (figure,) = answer_figures(tmp_path)
    (axes,) = visible(figure)
    assert means(axes) == [(0.0, -1.0), (1.0, 1.0)]
    assert filled(axes) == [(1.0, 1.0)]
    (baseline,) = dots(axes, "s")
    assert (list(baseline.get_xdata()), list(baseline.get_ydata())) == ([2.0], [0.0])


def test_methods_are_rows_the_declared_ones_first(tmp_path):
    make_study(tmp_path, CONTROLS, shuffled_too, speed=False)
    (figure,) = answer_figures(tmp_path)
    axes = visible(figure)[0]
    # moge - moge-shuffled: 0.5, 1.5, 2.5; moge - moe: 1, 2, 3; moge-shuffled - moe: 0.5 always,
    # and beyond no margin that is declared.
    assert means(axes) == [(1.5, 0.0), (2.0, 1.0), (0.5, 2.0)]
    assert filled(axes) == [(1.5, 0.0)]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "moge − moge-shuffled: cannot tell", "moge − moe: cannot tell", "moge-shuffled − moe",
    ]  # fmt: skip
    bands = [(band.get_x(), band.get_width()) for band in axes.patches]
    assert bands == [(-0.5, 1.0), (-1.0, 2.0)]


def test_cells_of_the_primary_contrast_stand_under_it(tmp_path):
    text = ROWS.replace(
        "base:", "primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}\nbase:"
    )
    make_study(tmp_path, text, speed=False)
    answer, numbers, _ = parts(tmp_path)
    (shown,) = answered_in(answer, numbers)
    assert [(each.kind, each.label) for each in listed(answer, shown)] == [
        ("primary", "moge − moe, mean of 2"), ("cell", "at group size 2"),
        ("cell", "at group size 3"), ("other", "moe − dense"),
    ]  # fmt: skip


def test_a_mean_of_some_cells_says_of_how_many(tmp_path):
    text = ROWS.replace(
        "base:", "primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}\nbase:"
    )
    grid = make_study(tmp_path, text, speed=False)
    for config in grid.configs:
        if config.method == "moge" and config.moe.group.size == 3:
            RecordStore(tmp_path).path(config.run_id).unlink()
    answer, numbers, _ = parts(tmp_path)
    (shown,) = answered_in(answer, numbers)
    assert listed(answer, shown)[0].label == "moge − moe, mean of 1 of 2"


def test_a_study_that_declares_nothing_shows_the_metric_and_its_best(tmp_path):
    gain = {1.0: 0.0, 4.0: 3.0, 16.0: 1.0}
    make_study(
        tmp_path, TUNING,
        lambda c: golden_accuracy(c) + (gain[c.moe.group.weight] if c.method == "moge" else 0),
    )  # fmt: skip
    plan = design(read_answer(tmp_path).results)
    assert plan.x_title == "lambda (log scale)"
    assert plan.ticks == ((-1.2, "moe"), (0.0, "1.0"), (1.0, "4.0"), (2.0, "16.0"))
    (figure,) = answer_figures(tmp_path)
    (axes,) = visible(figure)
    # Seeds add 0, 1, 2 to 75 and 0, 2, 4 to 76.
    assert means(axes) == [(-1.2, 76.0), (0.0, 78.0), (1.0, 81.0), (2.0, 79.0)]
    assert filled(axes) == [(1.0, 81.0)]
    assert axes.get_ylabel() == "test top-1 (%)\nhigher is better"
    assert "nothing in this study is a claim" in texts(figure)[1]


def test_without_a_declaration_every_arm_stands_against_its_baseline(tmp_path):
    make_study(tmp_path)
    (figure,) = answer_figures(tmp_path)
    (axes,) = visible(figure)
    # moe - dense: 5 for every seed; moge - moe: 1, 2, 3.
    assert [x for x, _ in means(axes)] == [5.0, 2.0, 2.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "moe − dense", "moge − moe, group size 2", "moge − moe, group size 3",
    ]  # fmt: skip
    assert dots(axes)[1].get_xdata().tolist() == [1.0, 2.0, 3.0]
    assert not axes.containers[0].has_xerr  # no spread
    assert not axes.patches


def test_one_arm_alone_is_shown_by_its_values(tmp_path):
    make_study(tmp_path, METHODS_ALONE.replace("[dense, moe, moge]", "[moe]"), speed=False)
    (figure,) = answer_figures(tmp_path)
    (axes,) = visible(figure)
    assert means(axes) == [(0.0, 75.5)]
    assert not axes.containers[0].has_yerr  # two seeds: no interval


def test_test_splits_come_first_and_two_are_drawn(tmp_path):
    text = (
        ONE_SEED
        + "axes: {method: [moe, moge], training.batch_size: [8, 16]}\n"
        + "table: {rows: [training.batch_size, method], metrics: top1_accuracy, "
        + "splits: [validation, test]}\n"
    )
    make_study(tmp_path, text, speed=False)
    answer, numbers, _ = parts(tmp_path)
    assert [each.split for each in answered_in(answer, numbers)] == ["test"]


def test_an_incomplete_study_is_drawn_with_its_n(tmp_path):
    grid = make_study(tmp_path, DOSE.replace(", dose, score_entropy", ""), speed=False)
    for config in grid.configs:
        if config.method == "moge" and config.seed == 2:
            RecordStore(tmp_path).path(config.run_id).unlink()
    (figure,) = answer_figures(tmp_path)
    assert texts(figure)[1].startswith("Cannot tell, provisional: moge against moe, +1.50 points")
    assert "n = 2 of 3 seeds" in texts(figure)[1]
    assert "n = 2 seeds." in " ".join(texts(figure)[2].split())


def test_a_study_without_a_pair_says_so_in_its_title(tmp_path):
    grid = make_study(tmp_path, DOSE, speed=False)
    for config in grid.configs:
        if config.method == "moge":
            RecordStore(tmp_path).path(config.run_id).unlink()
    assert headline(read_answer(tmp_path)).startswith("Cannot tell, provisional: moge against moe")
    assert headline(read_answer(tmp_path)).endswith("no seed has both arms")
    assert len(answer_figures(tmp_path)) == 1


@pytest.mark.parametrize("text", [DOSE, CONTROLS])
def test_nothing_lies_over_anything_else(tmp_path, text):
    with_routing(tmp_path, make_study(tmp_path, text, shuffled_too, speed=False))
    (figure,) = answer_figures(tmp_path)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in visible(figure)]
    boxes += [artist.get_window_extent(renderer) for artist in (*figure.texts, *figure.artists)]
    assert len(boxes) > 5  # panels; question, verdict and note; legend
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_a_dose_of_less_than_a_decade_is_on_a_linear_axis(tmp_path):
    with_routing(tmp_path, make_study(tmp_path, DOSE, speed=False))
    _, dose, _ = visible(next(iter(answer_figures(tmp_path))))
    assert dose.get_yscale() == "linear" and dose.get_ylim()[0] == 0
