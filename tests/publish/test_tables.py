import csv

import pytest
from record_samples import make_record
from study_samples import (
    ONE_SEED,
    PIVOT,
    ROWS,
    caption,
    cells,
    golden_accuracy,
    make_study,
    read_answer,
)

from moge_bench.publish.tables import write_tables
from moge_bench.runs.record import RunError
from moge_bench.runs.store import RecordStore


def written(root, text=ROWS, **changes) -> str:
    make_study(root, text, **changes)
    return write_tables(read_answer(root), root / "studies/golden")


def test_golden_table_with_an_arm_a_row(tmp_path):
    markdown = written(tmp_path)
    # Dense: seeds add 0, 1, 2: mean 71, spread 1, interval 71 -+ t(0.975, 2) / sqrt(3) = 4.303 /
    # 1.732 = 2.48. MoGE: mean 78, spread 2, so -+ 4.97. MoE less dense is 5 for every seed: no
    # interval. MoGE less MoE is 1, 2, 3: mean 2, -+ 2.48.
    assert cells(markdown, "Test top-1 (%)") == [
        ["group size", "method", "test top-1 (%)", "difference (points)"],
        ["-", "dense", "71.00 [68.52; 73.48]", "-"],
        ["-", "moe", "76.00 [73.52; 78.48]", "+5.00"],
        ["2", "moge", "78.00 [73.03; 82.97]", "+2.00 [-0.48; +4.48]"],
        ["3", "moge", "78.00 [73.03; 82.97]", "+2.00 [-0.48; +4.48]"],
    ]
    # 990 / 1000; the speeds are the median and, of three equal ones, the same quartiles.
    assert cells(markdown, "Throughput (tokens/s)") == [
        ["group size", "method", "throughput (tokens/s)", "ratio"],
        ["-", "dense", "2,000 [2,000; 2,000]", "-"],
        ["-", "moe", "1,000 [1,000; 1,000]", "0.500"],
        ["2", "moge", "990 [990; 990]", "0.990"],
        ["3", "moge", "990 [990; 990]", "0.990"],
    ]
    assert cells(markdown, "Peak memory (MiB)")[3] == ["2", "moge", "20.50", "1.025"]
    assert cells(markdown, "Active parameters")[1] == ["-", "dense", "5"]


def test_golden_pivot(tmp_path):
    markdown = written(tmp_path, PIVOT)
    # dense and moe do not depend on the group size: they stand in both rows.
    assert cells(markdown, "Test top-1 (%)") == [
        ["group size", "dense (%)", "moe (%)", "moge (%)"],
        ["2", "71.00 [68.52; 73.48]", "76.00 [73.52; 78.48]", "78.00 [73.03; 82.97]"],
        ["3", "71.00 [68.52; 73.48]", "76.00 [73.52; 78.48]", "78.00 [73.03; 82.97]"],
    ]
    assert "axes that make no difference to it: dense, moe." in caption(markdown, "Test top-1 (%)")
    # dense has no baseline: no column of dashes.
    assert cells(markdown, "Test top-1 (%): difference from the baseline") == [
        ["group size", "moe (points)", "moge (points)"],
        ["2", "+5.00", "+2.00 [-0.48; +4.48]"],
        ["3", "+5.00", "+2.00 [-0.48; +4.48]"],
    ]
    assert cells(markdown, "Throughput (tokens/s): ratio to the baseline")[1] == [
        "2", "0.500", "0.990",
    ]  # fmt: skip
    assert "published" not in markdown.lower()


def test_every_caption_needs_nothing_else(tmp_path):
    markdown = written(tmp_path)
    said = caption(markdown, "Test top-1 (%)")
    for part in (
        "Mean of n = 3 seeds (0, 1, 2) [95 % interval, Student's t", "paired by seed",
        "Baseline: dense for moe, moe for moge", "preset tiny-vit", "steps 2100", "batch size 64",
        "learning rate 0.002", "lambda 100", "group border torus", "experts 64",
        "moge-bench tables --results", "run ids: table.csv",
    ):  # fmt: skip
        assert part in said, part
    assert "group size" not in said  # it is an axis
    assert "Median [quartiles] of n = 3 timed rounds" in caption(markdown, "Throughput (tokens/s)")
    titles = [line[4:] for line in markdown.splitlines() if line.startswith("### ")]
    assert titles == [
        "Test top-1 (%)", "Throughput (tokens/s)", "Peak memory (MiB)", "Active parameters",
    ]  # fmt: skip
    for title in titles:
        assert "n = " in caption(markdown, title)
        assert "moge-bench tables --results" in caption(markdown, title)


def test_two_seeds_have_no_interval(tmp_path):
    markdown = written(tmp_path, ROWS.replace("[0, 1, 2]", "[0, 1]"))
    # MoE: 75 and 76; MoGE less MoE: 1 and 2.
    assert cells(markdown, "Test top-1 (%)")[2:4] == [
        ["-", "moe", "75.50", "+5.00"], ["2", "moge", "77.00", "+1.50"],
    ]  # fmt: skip
    said = caption(markdown, "Test top-1 (%)")
    assert "Mean of n = 2 seeds (0, 1); no interval below n = 3." in said
    assert "Holm" not in said


def test_equal_values_have_no_interval(tmp_path):
    markdown = written(tmp_path, accuracy=lambda _: 77.3)
    assert cells(markdown, "Test top-1 (%)")[2] == ["-", "moe", "77.30", "+0.00"]
    assert "The same in every run" in caption(markdown, "Test top-1 (%)")


def test_bold_is_what_survives_the_correction_over_the_study(tmp_path):
    # MoGE less MoE is 5, 5.1, 5.2 with h = 2: mean 5.1, spread 0.1, t = 5.1 / (0.1 / sqrt(3)) = 88,
    # p = 0.00013. With h = 3: 0.4, 1, 1.6: mean 1, spread 0.6, t = 2.9, p = 0.10.
    def accuracy(config):
        if config.method != "moge":
            return 70.0 + config.seed
        first, step = (5.0, 0.1) if config.moe.group.size == 2 else (0.4, 0.6)
        return 70.0 + config.seed + first + step * config.seed

    markdown = written(tmp_path, accuracy=accuracy)
    rows = cells(markdown, "Test top-1 (%)")
    assert rows[3][3] == "**+5.10 [+4.85; +5.35]**"
    assert rows[4][3] == "+1.00 [-0.49; +2.49]"
    # MoE less dense is 0 for every seed: no test. Two are left.
    said = caption(markdown, "Test top-1 (%)")
    assert "Bold: p < 0.05 after Holm's correction over the study's 2 differences" in said


def test_the_family_spans_all_splits(tmp_path):
    # p = 0.035: below 0.05 alone, and not among two, of which Holm asks 0.025.
    def both(config):
        value = golden_accuracy(config)
        if config.method == "moge":
            value = 75.0 + config.seed + (1.0, 1.5, 2.0)[config.seed]
        return value

    text = ROWS.replace("  moe.group.size: [2, 3]\n", "")
    text = text.replace("[moe.group.size, method]", "method")
    markdown = written(tmp_path / "one", text, accuracy=both)
    # Differences 1, 1.5, 2: t = 1.5 / (0.5 / sqrt(3)) = 5.196, p = 0.0351.
    assert cells(markdown, "Test top-1 (%)")[3][2].startswith("**+1.50")
    root = tmp_path / "two"
    grid = make_study(root, text.replace("metrics:", "splits: [validation, test]\n  metrics:"))
    for config in grid.configs:
        metrics = [
            {"name": "top1_accuracy", "value": both(config), "unit": "%", "split": split, "step": 1}
            for split in ("validation", "test")
        ]
        RecordStore(root).write(make_record(config, metrics=metrics))
    markdown = write_tables(read_answer(root), root / "studies/golden")
    assert cells(markdown, "Test top-1 (%)")[3][2] == "+1.50 [+0.26; +2.74]"


def test_missing_failed_and_diverged_runs_are_said(tmp_path):
    grid = make_study(tmp_path)
    store = RecordStore(tmp_path)
    moe = [config for config in grid.configs if config.method == "moe"]
    store.path(moe[0].run_id).unlink()
    error = RunError(type="KeyError", message="a|b\nc")
    store.write(make_record(moe[1], status="failed", error=error, metrics=[]))
    store.write(make_record(moe[2], status="diverged", diverged_at=17, metrics=[]))
    moge = next(config for config in grid.configs if config.method == "moge")
    store.write(make_record(moge, status="diverged", diverged_at=5, metrics=[]))
    markdown = write_tables(read_answer(tmp_path), tmp_path / "studies/golden")
    rows = cells(markdown, "Test top-1 (%)")
    # Without a run of MoE there is no difference, and no column of dashes.
    assert rows[2] == ["-", "moe", "- (0 of 3; 1 failed, 1 diverged, 1 missing)"]
    assert rows[3][2] == "79.00 (2 of 3; 1 diverged)"  # seeds 1 and 2: 78 and 80
    assert "**Incomplete:** 1 run has no record yet" in markdown
    assert f"({moe[1].run_id}) failed with KeyError: a\\|b c." in markdown
    assert f"({moe[2].run_id}) diverged at step 17." in markdown
    assert "n = 0 to 3 seeds" in caption(markdown, "Test top-1 (%)")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"code": {"commit": "f" * 40, "dirty": True}},
         "code: 10 of commit 0123456789, 2 of commit ffffffffff (dirty)"),
        ({"code": {"commit": None, "dirty": None, "digest": "abc"}}, "code: 10 of commit"),
        ({"machine": {"cpu": "Other CPU"}}, "machine: 10 of Test CPU, 2 of Other CPU"),
        ({"machine": {"cpu": "Test CPU", "instruction_set": "avx2"}},
         "instruction set: 10 of not recorded, 2 of avx2"),
        ({"versions": {"torch": "2.14.0"}}, "torch: 10 of 2.13.0, 2 of 2.14.0"),
        ({"threads": 2}, "threads: 10 of 1, 2 of 2"),
        ({"device": "cuda:0"}, "device: 10 of cpu, 2 of cuda:0"),
    ],
)  # fmt: skip
def test_mixed_conditions_are_warned_of_at_the_head(tmp_path, change, sentence):
    grid = make_study(tmp_path)
    for config in grid.arms[0].configs[:2]:  # dense, the baseline of moe alone
        store = RecordStore(tmp_path)
        store.write(make_record(config, **change))
    markdown = write_tables(read_answer(tmp_path), tmp_path / "studies/golden")
    head = markdown[: markdown.index("## Quality")]
    assert f"**Compare with care:** records differ in {sentence}" in head
    assert "1 of the 3 comparisons are between arms that differ in it" in head
    assert "Compare with care" in caption(markdown, "Test top-1 (%)")


def test_without_methods_the_first_arm_is_the_baseline(tmp_path):
    text = ROWS.replace("method: [dense, moe, moge]", "training.steps: [50, 100]")
    text = text.replace("rows: [moe.group.size, method]", "rows: [moe.group.size, training.steps]")
    text = text.replace("preset: tiny-vit", "preset: tiny-vit, method: moge")
    markdown = written(tmp_path, text, accuracy=lambda config: config.training.steps + config.seed)
    rows = cells(markdown, "Test top-1 (%)")
    assert [row[3] for row in rows[1:]] == ["-", "+50.00", "+0.00", "+50.00"]
    assert "Baseline: the first arm, group size 2, steps 50." in caption(markdown, "Test top-1 (%)")


def test_every_row_leads_to_its_records(tmp_path):
    grid = make_study(tmp_path)
    folder = tmp_path / "studies/golden"
    write_tables(read_answer(tmp_path), folder)
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert len(rows) == 4 * 4  # arms times figures
    by_arm = {row["arm_id"]: row for row in rows if row["metric"] == "top1_accuracy"}
    for arm in grid.arms:
        assert by_arm[arm.arm_id]["run_ids"].split() == list(arm.run_ids)
    moge = by_arm[grid.arms[2].arm_id]
    assert float(moge["mean"]) == 78.0
    assert float(moge["difference"]) == 2.0
    assert float(moge["difference_high"]) == pytest.approx(2 + 4.302653 / 3**0.5)
    runs = list(csv.DictReader((folder / "runs.csv").open()))
    assert {row["run_id"] for row in runs} == {config.run_id for config in grid.configs}


def test_the_same_records_give_the_same_bytes(tmp_path):
    make_study(tmp_path)
    folders = [tmp_path / name / "studies/golden" for name in ("results", "x/results")]
    for folder in folders:
        write_tables(read_answer(tmp_path), folder)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == [
        "answer.json", "answer.md", "runs.csv", "table.csv", "tables.md", "tables.tex",
    ]  # fmt: skip
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert "--results results;" in (folders[0] / "tables.md").read_text()


def test_what_nothing_measured_is_said_and_is_no_column_of_dashes(tmp_path):
    text = ROWS.replace("top1_accuracy,", "top1_accuracy, dose, load_entropy,")
    for name, study in (("rows", text), ("pivot", text.replace("rows: [moe.group.size, method]",
                        "rows: moe.group.size\n  columns: method"))):  # fmt: skip
        markdown = written(tmp_path / name, study, speed=False)
        said = "**Not measured:** dose, test load entropy, peak memory, throughput."
        assert said in markdown.partition("## Quality")[0]
        titles = [line[4:] for line in markdown.splitlines() if line.startswith("### ")]
        assert not any("dose" in title.lower() or "memory" in title for title in titles)


def test_a_pivot_wider_than_six_columns_goes_on_in_another_table(tmp_path):
    text = (
        ONE_SEED
        + """
axes:
  method: [dense, moe]
  training.learning_rate: [0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007]
table: {rows: method, columns: training.learning_rate, metrics: top1_accuracy}
"""
    )
    markdown = written(tmp_path, text, speed=False)
    first = cells(markdown, "Test top-1 (%) (1 of 2)")
    second = cells(markdown, "Test top-1 (%) (2 of 2)")
    assert first[0] == ["method", *(f"learning rate 0.00{i} (%)" for i in range(1, 6))]
    assert second[0] == ["method", "learning rate 0.006 (%)", "learning rate 0.007 (%)"]
    assert [row[0] for row in first] == [row[0] for row in second] == ["method", "dense", "moe"]
    assert "n = 1 seed (0)" in caption(markdown, "Test top-1 (%) (1 of 2)")


def test_more_axes_than_columns_are_one_column(tmp_path):
    text = (
        ONE_SEED
        + """
axes:
  method: [moe, moge]
  moe.num_experts: [9, 16]
  moe.top_k: [1, 2]
  training.steps: [50, 60]
  training.batch_size: [8, 16]
table:
  rows: [method, moe.num_experts, moe.top_k, training.steps, training.batch_size]
  metrics: top1_accuracy
"""
    )
    markdown = written(tmp_path, text, speed=False)
    rows = cells(markdown, "Test top-1 (%)")
    assert rows[0] == ["arm", "test top-1 (%)", "difference (points)"]
    assert len(rows) == 1 + 2**5
    assert rows[1] == ["moe, experts 9, k 1, steps 50, batch size 8", "75.00", "-"]
