"""The tables of the families: what is published, what is not, what was measured here."""

import pytest
from record_samples import make_record
from study_samples import caption, cells, read_study

from moge_bench.publish.systems import write_systems
from moge_bench.runs.store import RecordStore
from moge_bench.study.families import FAMILIES
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import make_manifest, save_manifest

STUDY = """
name: golden
question: What does SMoE reach?
base: {preset: smoe-s, seeds: 3}
axes: {method: [dense, moe, moge], training.steps: [60000, 100]}
table: {rows: [training.steps, method], metrics: perplexity}
"""


@pytest.fixture
def page(tmp_path):
    write_systems([], tmp_path)
    return (tmp_path / "systems.md").read_text()


def test_a_family_has_a_table_with_what_is_published_of_it(page):
    assert [line[4:] for line in page.splitlines() if line.startswith("### ")] == [
        family.title for family in FAMILIES
    ]
    assert cells(page, "V-MoE, from scratch") == [
        ["system", "published result", "data", "metric", "published"],
        ["vmoe-s16-dense", "-", "-", "-", "-"],
        *[
            ["vmoe-s16", f"V-MoE-S/32, {setting}", data, "top-1 accuracy", value]
            for setting, data, value in (
                ("8 experts k=2 last-2 300 epochs from scratch", "ImageNet-1K val", "73.1 %"),
                ("8 experts k=2 last-2 300 epochs from scratch", "ImageNet-1K ReaL val", "74.4 %"),
                ("8 experts k=2 last-2 300 epochs from scratch", "ImageNet-V2", "59.2 %"),
                ("same at 384 px", "ImageNet-1K val", "75.9 %"),
            )
        ],
        ["vmoge-s16", "-", "-", "-", "-"],
    ]
    said = caption(page, "V-MoE, from scratch")
    source = "google-research/vmoe config docstring"
    assert said.startswith(
        f"Not measured here. {source} (depth 8 as in V-MoGE-S/16): V-MoE-S/32 on"
    )
    assert "(mean of 3 seeds): V-MoE-S/32 on ImageNet-V2." in said
    assert "arXiv 2504.09265 (no result table could be read; print a dash): MoGE (all" in said


def test_only_what_is_published_may_be_a_column_of_dashes(page):
    for family in FAMILIES:
        columns = list(zip(*cells(page, family.title)[1:], strict=True))
        assert not any(set(column) == {"-"} for column in columns[:-1]), family.title
    assert cells(page, "AdamSMoE") == [
        ["system", "published"], ["adam-smoe-m", "-"], ["adam-smoge-m", "-"],
    ]  # fmt: skip
    assert "No published number is known." in caption(page, "MomentumSMoE")


def test_what_was_measured_here_is_of_the_preset_itself(tmp_path):
    grid, store = parse_grid(STUDY, "x"), RecordStore(tmp_path)
    save_manifest(tmp_path, make_manifest(grid))
    for config in grid.configs:
        value = 30.0 + config.seed if config.training.steps == 60_000 else 900.0
        metric = {"name": "perplexity", "value": value, "unit": "", "split": "test", "step": 1}
        store.write(make_record(config, metrics=[metric]))
    write_systems([read_study(tmp_path)], tmp_path)
    rows = cells((tmp_path / "systems.md").read_text(), "SMoE")
    # 30, 31, 32: mean 31 -+ 4.303 / sqrt(3) = 2.48. 100 steps are another arm.
    assert [(row[0], row[1]) for row in rows] == [
        ("system", "measured here"), ("dense-s", "31.00 [28.52; 33.48] (n = 3)"), ("dense-m", "-"),
        ("smoe-s", "31.00 [28.52; 33.48] (n = 3)"), ("smoe-m", "-"),
        ("smoge-s", "31.00 [28.52; 33.48] (n = 3)"), ("smoge-m", "-"),
    ]  # fmt: skip
