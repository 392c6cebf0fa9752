import pytest
from record_samples import make_record
from study_samples import make_study, read_answer

from moge_bench.analysis.numbers import Number
from moge_bench.analysis.store import VERSION, Analysis, AnalysisStore, LayerMap
from moge_bench.publish.captions import Captions
from moge_bench.publish.conditions import Conditions
from moge_bench.publish.maps import draw_maps, mapped
from moge_bench.runs.store import RecordStore

STUDY = """
name: golden
question: Is there a map?
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes:
  moe.num_experts: [16, 64]
  method: [dense, moe, moge, moge-shuffled]
table: {rows: [moe.num_experts, method], metrics: top1_accuracy}
"""


CODE = {"commit": "0", "dirty": False, "digest": "0"}


def analysis(config, load=None):
    """An analysis of a 4x4 or 8x8 map: expert e has load e, class e % 10 and lift 1 + e."""
    experts = config.moe.num_experts
    side = int(experts**0.5)
    layer = LayerMap(
        block=2, rows=side, cols=side, border="torus", load=load or list(range(experts)),
        categories=list(range(10)), preferred=[e % 10 for e in range(experts)],
        lift=[1.0 + e for e in range(experts)], router_similarity=[0.5] * experts,
    )  # fmt: skip
    curve = [
        Number(name="topography_score_correlation", value=0.3 / d, block=2, at=f"distance_{d}")
        for d in (2, 1)
    ]
    other = Number(name="topography_score_correlation", value=9.0, block=3, at="distance_1")
    return Analysis(
        version=VERSION, run_id=config.run_id, code="0", numbers=[*curve, other], maps=[layer]
    )


def analysed(root, wanted, text=STUDY):
    """Make the study with an analysis of every run that ``wanted`` says; return what is drawn."""
    grid = make_study(root, text, accuracy=lambda config: 75.0 + config.seed, speed=False)
    store = AnalysisStore(root)
    for config in grid.configs:
        record = make_record(config, 75.0 + config.seed, code=CODE)
        RecordStore(root).write(record)
        if config.method != "dense" and wanted(config):
            store.write(analysis(config))
    answer = read_answer(root)
    return answer, mapped(answer, store)


def shown(found):
    return [(each.arm.method, each.arm.shown["moe.num_experts"], each.seed) for each in found]


def test_the_largest_map_and_the_lowest_seed_that_all_methods_have(tmp_path):
    _, found = analysed(tmp_path, lambda c: c.seed > 0 or c.method == "moe")
    methods = ("moe", "moge", "moge-shuffled")
    assert shown(found) == [(method, 64, 1) for method in methods]


def test_more_methods_come_before_more_experts(tmp_path):
    _, found = analysed(tmp_path, lambda c: c.moe.num_experts == 16 or c.method == "moe")
    assert [experts for _, experts, _ in shown(found)] == [16, 16, 16]


def test_the_place_that_the_primary_contrast_names_is_drawn(tmp_path):
    declared = (
        "{metric: top1_accuracy, contrast: [moge, moe], at: {moe.num_experts: 16}, margin: 1}"
    )
    text = STUDY.replace("base:", f"primary: {declared}\nbase:")
    _, found = analysed(tmp_path, lambda c: True, text)
    assert {experts for _, experts, _ in shown(found)} == {16}


def test_an_analysis_of_other_code_is_not_drawn(tmp_path):
    answer, found = analysed(tmp_path, lambda c: True)
    assert len(found) == 3
    for arm in answer.results.arms:
        for record in arm.records.values():
            again = {**CODE, "digest": "1"}
            RecordStore(tmp_path).write(make_record(record.settings, code=again))
    assert mapped(read_answer(tmp_path), AnalysisStore(tmp_path)) == []


def test_without_an_analysis_there_is_no_map(tmp_path):
    answer, found = analysed(tmp_path, lambda c: False)
    assert found == []
    assert list(draw_maps(answer, found, None)) == []


def test_maps_show_the_analysis_cell_by_cell(tmp_path):
    answer, found = analysed(tmp_path, lambda c: c.moe.num_experts == 16)
    captions = Captions(answer.results, Conditions(answer.results), tmp_path / "studies/golden")
    (figure,) = draw_maps(answer, found, captions)
    panels = [axes for axes in figure.axes if axes.collections and axes.get_label() == ""]
    assert len(panels) == 9  # three methods by load, preference and router
    values = panels[0].collections[0].get_array()
    # Loads 0 to 15, mean 7.5: expert 5, row 1 and column 1, has 5 / 7.5.
    assert values[1, 1] == pytest.approx(5 / 7.5)
    assert panels[0].get_ylim()[0] > panels[0].get_ylim()[1]  # row 0 is above
    names = {(t.get_position(), t.get_text()) for t in panels[3].texts}
    assert ((1.5, 2.5), "9") in names  # expert 9: row 2, column 1, class 9
    assert panels[3].collections[0].get_array()[2, 1] == 10.0
    # Where they stand on the grid is said once, below: they stand at one place.
    assert [panel.get_title() for panel in panels[:3]] == ["moe", "moge", "moge-shuffled"]
    assert any("At experts 16." in text.get_text().replace("\n", " ") for text in figure.texts)
    limits = {panel.collections[0].get_clim() for panel in panels[6:]}
    assert limits == {(-0.5, 0.5)}  # around zero, for all alike
    curve = next(axes for axes in figure.axes if "distance" in axes.get_xlabel())
    assert curve.lines[1].get_xydata().tolist() == [[1.0, 0.3], [2.0, 0.15]]
    note = " ".join(figure.texts[-1].get_text().split())
    assert "seed 0, the lowest that all have: n = 1" in note
    assert found[1].analysis.run_id in note
