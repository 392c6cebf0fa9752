from study_samples import make_study, read_answer
from test_figures import METHODS_ALONE, answer_figures, dots, parts, visible
from typer.testing import CliRunner

from moge_bench.analysis.store import AnalysisStore
from moge_bench.cli import app
from moge_bench.publish.cost import draw_cost
from moge_bench.publish.curves import draw_curves
from moge_bench.publish.design import design
from moge_bench.publish.figures import write_figures
from moge_bench.publish.panels import pages
from moge_bench.runs.store import RecordStore


def test_cost_shows_every_arm_once(tmp_path):
    make_study(tmp_path)
    answer, numbers, captions = parts(tmp_path)
    (figure,) = draw_cost(answer.results, numbers, captions)
    memory, speed = ([dot.get_xdata()[0] for dot in dots(axes, "o")] for axes in figure.axes)
    assert memory == [10.0, 20.0, 20.5, 20.5]
    assert speed == [2000.0, 1000.0, 990.0, 990.0]


def test_curves_are_the_mean_over_seeds_of_the_training_loss(tmp_path):
    make_study(tmp_path, METHODS_ALONE.replace("[0, 1]", "[0, 1, 2]"))
    answer, _, captions = parts(tmp_path)
    (figure,) = draw_curves(design(answer.results), captions)
    (axes,) = visible(figure)
    # Seeds 0, 1, 2: mean 1 at step 1, 1 / 2 at step 2.
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 1.0], [2.0, 0.5]]
    assert len(axes.lines) == 3


def test_pages_say_what_they_leave_out():
    assert list(pages([1, 2], 6)) == [([1, 2], "")]
    assert [said for _, said in pages(range(7), 6)] == ["Page 1 of 2.", "Page 2 of 2."]
    assert list(pages(range(26), 6))[-1][1] == "Page 4 of 4. 2 more are in table.csv alone."


def write(root, folder):
    return write_figures(read_answer(root), folder, AnalysisStore(root))


def test_an_arm_without_records_is_left_out(tmp_path):
    grid = make_study(tmp_path, METHODS_ALONE, speed=False)
    for config in grid.configs:
        if config.method == "dense":
            RecordStore(tmp_path).path(config.run_id).unlink()
    write(tmp_path, tmp_path / "figures")
    svg = (tmp_path / "figures/answer.svg").read_text()
    assert ">moge − moe<" in svg
    assert ">moe − dense<" not in svg


def test_the_same_records_give_the_same_bytes(tmp_path):
    make_study(tmp_path, METHODS_ALONE, speed=False)
    first, second = (write(tmp_path, tmp_path / name / "results/studies/golden") for name in "ab")
    assert [path.name for path in first] == [
        f"{name}.{kind}" for name in ("answer", "curves") for kind in ("png", "svg")
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
    assert (tmp_path / "studies/golden/answer.png").stat().st_size > 1000


def test_a_study_without_records_has_no_figure(tmp_path):
    grid = make_study(tmp_path, METHODS_ALONE, speed=False)
    for config in grid.configs:
        RecordStore(tmp_path).path(config.run_id).unlink()
    assert write(tmp_path, tmp_path / "figures") == []


def test_a_study_of_costs_alone_has_no_answer_to_draw(tmp_path):
    make_study(tmp_path, METHODS_ALONE.replace("metrics: top1_accuracy", "metrics: parameters"))
    assert answer_figures(tmp_path) == []


def test_a_dollar_in_a_name_is_a_letter(tmp_path):
    # As mathematics it does not parse.
    make_study(tmp_path, METHODS_ALONE.replace("Which method", r"Is $\frac$ better"), speed=False)
    paths = write(tmp_path, tmp_path / "figures")
    assert r"$\frac$" in paths[1].read_text()
