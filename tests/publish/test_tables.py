import csv
import re

import pytest
import yaml
from record_samples import make_record, make_speed

from moge_bench.publish.tables import table_rows, write_tables
from moge_bench.runs.record import RecordStore, RunError
from moge_bench.study.grid import parse_grid

TEXT = """
name: golden
question: Is MoGE better?
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes:
  method: [dense, moe, moge]
  moe.group.size: [2, 3]
table:
  rows: [moe.group.size, method]
  metrics: [top1_accuracy, peak_memory_mib, tokens_per_second]
"""
ACCURACY = {"dense": 70.0, "moe": 75.0, "moge": 76.0}
SPEED = {"dense": (2000.0, 10.0), "moe": (1000.0, 20.0), "moge": (990.0, 20.5)}


@pytest.fixture
def store(tmp_path):
    """Accuracy of seed s is the method's value plus s, and for MoGE plus 2 s."""
    store = RecordStore(tmp_path)
    for config in parse_grid(TEXT, "golden").configs:
        step = 2 if config.method == "moge" else 1
        accuracy = ACCURACY[config.method] + step * config.seed
        speed = {"golden": make_speed(*SPEED[config.method])}
        store.write(make_record(config, accuracy, speed=speed))
    return store


def test_golden_table(store, tmp_path):
    markdown = write_tables(parse_grid(TEXT, "golden"), store, tmp_path / "tables")
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == [
        "moe.group.size", "method", "n", "test top-1 (%)", "test top-1 vs baseline",
        "peak memory (MiB)", "peak memory ratio", "throughput (tokens/s)", "throughput ratio",
        "baseline", "published",
    ]  # fmt: skip
    # Dense and MoE: seeds 0, 1, 2 add 0, 1, 2: mean + 1, spread 1. MoGE: mean + 2, spread 2.
    # Paired, MoE - dense is 5 for every seed; MoGE - MoE is 1, 2, 3: mean 2, half width
    # t(0.975, 2) * 1 / sqrt(3) = 4.303 / 1.732 = 2.48.
    assert cells[2:] == [
        ["-", "dense", "3", "71.00 ± 1.00", "-", "10.00", "-", "2,000 [2,000; 2,000]", "-", "-",
         "-"],
        ["-", "moe", "3", "76.00 ± 1.00", "+5.00 ± 0.00", "20.00", "2.000", "1,000 [1,000; 1,000]",
         "0.500", "dense", "-"],
        ["2", "moge", "3", "78.00 ± 2.00", "+2.00 ± 2.48", "20.50", "1.025", "990 [990; 990]",
         "0.990", "moe", "-"],
        ["3", "moge", "3", "78.00 ± 2.00", "+2.00 ± 2.48", "20.50", "1.025", "990 [990; 990]",
         "0.990", "moe", "-"],
    ]  # fmt: skip


def test_files_hold_the_same_lines(store, tmp_path):
    markdown = write_tables(parse_grid(TEXT, "golden"), store, tmp_path / "tables")
    assert (tmp_path / "tables/golden.md").read_text() == markdown
    rows = list(csv.DictReader((tmp_path / "tables/golden.csv").open()))
    assert [row["method"] for row in rows] == ["dense", "moe", "moge", "moge"]
    assert float(rows[2]["top1_accuracy.test.mean"]) == 78.0
    latex = (tmp_path / "tables/golden.tex").read_text()
    assert r"78.00 $\pm$ 2.00" in latex
    assert latex.count(r"\\") == 1 + 4


def test_missing_and_failed_runs_are_shown(store, tmp_path):
    grid = parse_grid(TEXT, "golden")
    first, second = [config for config in grid.configs if config.method == "moe"][:2]
    store.path(first.hash()).unlink()
    error = RunError(type="KeyError", message="why")
    store.write(make_record(second, status="failed", error=error, metrics=[]))
    rows = {row["method"]: row for row in table_rows(grid, store)}
    assert (rows["moe"]["n"], rows["moe"]["failed"], rows["moe"]["missing"]) == (1, 1, 1)
    markdown = write_tables(grid, store, tmp_path / "tables")
    assert "1 (1 failed, 1 missing)" in markdown
    assert "**Incomplete:** 1 runs have no record yet." in markdown
    assert f"**Failed:** tiny-vit moe N=16 k=1 seed=1 ({second.hash()}): KeyError: why." in markdown


def test_mixed_conditions_are_flagged(store, tmp_path):
    grid = parse_grid(TEXT, "golden")
    config = grid.configs[0]
    store.write(make_record(config, machine={"cpu": "Other CPU", "cores": 64}))
    markdown = write_tables(grid, store, tmp_path / "tables")
    assert "Other CPU, 64 cores" in markdown
    assert "mixed: compare with care" in markdown


def test_without_methods_the_first_line_is_the_baseline(tmp_path):
    text = TEXT.replace("method: [dense, moe, moge]", "training.steps: [5, 10]")
    text = text.replace("rows: [moe.group.size, method]", "rows: [moe.group.size, training.steps]")
    grid = parse_grid(text, "golden")
    store = RecordStore(tmp_path)
    for config in grid.configs:
        store.write(make_record(config, 50.0 + config.training.steps))
    rows = table_rows(grid, store)
    assert [row["baseline"] for row in rows] == ["-", "2 5", "2 5", "2 5"]
    assert [row["top1_accuracy.test.difference"] for row in rows] == [None, 5.0, 0.0, 5.0]


NAMES = ("a|b.txt", "50% of $x$ & y_z.txt", r"back\slash{}~^#.txt", "line\nbreak.txt")


def named_grid(folder):
    """A grid whose axis is files of text with names that a table's marks are made of."""
    for name in NAMES:
        (folder / name).write_text("text of three words " * 20)
    files = [str(folder / name) for name in NAMES]
    values = yaml.safe_load(TEXT) | {
        "question": "| Which file\n# of $x$ & y?",
        "base": {"preset": "tiny-lm", "seeds": [0], "set": {"data.tokenizer": "bytes"}},
        "axes": {"data.name": files}, "table": {"rows": "data.name", "metrics": "perplexity"},
    }  # fmt: skip
    return parse_grid(yaml.safe_dump(values), "golden"), files


def test_names_do_not_break_a_markdown_table(tmp_path):
    grid, files = named_grid(tmp_path)
    markdown = write_tables(grid, RecordStore(tmp_path), tmp_path / "tables")
    assert "\n\\| Which file # of $x$ & y?\n" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table]
    assert len(table) == 2 + len(NAMES) and len({len(row) for row in cells}) == 1
    shown = [row[0].strip().replace("\\|", "|") for row in cells[2:]]
    assert shown == [name.replace("\n", " ") for name in files]


def test_names_do_not_break_a_latex_table(tmp_path):
    grid, _ = named_grid(tmp_path)
    write_tables(grid, RecordStore(tmp_path), tmp_path / "tables")
    latex = (tmp_path / "tables/golden.tex").read_text()
    assert latex.startswith("% golden: | Which file # of $x$ & y?\n\\begin{tabular}")
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")][1:]
    assert [row.count(" & ") for row in rows] == [rows[0].count(" & ")] * len(NAMES)
    assert r"50\% of \$x\$ \& y\_z.txt" in latex
    assert r"back\textbackslash slash\{\}\textasciitilde \textasciicircum \#.txt" in latex
    assert "line break.txt" in latex


def test_a_plus_minus_sign_in_a_name_is_not_taken_for_ours(tmp_path):
    grid, _ = named_grid(tmp_path)
    text = grid.text.replace("a|b.txt", "a+-b.txt")
    (tmp_path / "a+-b.txt").write_text("text of three words " * 20)
    write_tables(parse_grid(text, "golden"), RecordStore(tmp_path), tmp_path / "tables")
    assert "a+-b.txt" in (tmp_path / "tables/golden.tex").read_text()
