"""Published values in a study's tables: a column, a row, or dashes before the first run."""

from study_samples import PIVOT, ROWS, caption, cells, make_study, read_answer

from moge_bench.publish.tables import write_tables


def written(root, text=ROWS, **changes) -> str:
    make_study(root, text, **changes)
    return write_tables(read_answer(root), root / "studies/golden")


def test_published_values_stand_beside_ours_where_there_are_any(tmp_path):
    name = '"Swin-T dense, 224 px 1K"'
    markdown = written(tmp_path, ROWS + f"  published: {{moge: {name}}}\n")
    rows = cells(markdown, "Test top-1 (%)")
    assert rows[0][-1] == "published"
    assert [row[-1] for row in rows[1:3]] == ["-", "-"]
    assert rows[3][-1] == "Swin-T dense, 224 px 1K: 81.2 % top-1 accuracy, ImageNet-1K val"
    assert "published" not in cells(markdown, "Throughput (tokens/s)")[0]
    source = "224 px 1K: microsoft/Swin-Transformer MODELHUB.md."
    assert source in caption(markdown, "Test top-1 (%)")
    markdown = written(tmp_path / "pivot", PIVOT + f"  published: {{moge: {name}}}\n")
    rows = cells(markdown, "Test top-1 (%)")
    value = "Swin-T dense, 224 px 1K: 81.2 % top-1 accuracy, ImageNet-1K val"
    assert rows[-1] == ["published", *(value if "moge" in c else "-" for c in rows[0][1:])]
    assert source in caption(markdown, "Test top-1 (%)")
    # Methods down: no column is a method's, so it is said below.
    text = PIVOT.replace("rows: moe.group.size", "rows: method")
    text = text.replace("columns: method", "columns: moe.group.size")
    markdown = written(tmp_path / "down", text + f"  published: {{moge: {name}}}\n")
    assert "published" not in {row[0] for row in cells(markdown, "Test top-1 (%)")}
    assert f"Published for moge: {value}." in caption(markdown, "Test top-1 (%)")


def test_before_the_first_run_a_study_shows_what_is_published_and_dashes(tmp_path):
    name = '"Swin-T dense, 224 px 1K"'
    text = PIVOT.replace("top1_accuracy,", "top1_accuracy, dose,")
    markdown = written(tmp_path, f"{text}  published: {{moge: {name}}}\n", runs=False, speed=False)
    titles = [line[4:] for line in markdown.splitlines() if line.startswith("### ")]
    assert titles == ["Test top-1 (%)"]
    rows = cells(markdown, "Test top-1 (%)")
    assert all(cell.startswith("- (0 of") for row in rows[1:-1] for cell in row[1:])
    assert rows[-1][0] == "published" and "81.2 % top-1 accuracy" in str(rows[-1])
    assert "No run has finished." in caption(markdown, "Test top-1 (%)")
    (said,) = [line for line in markdown.splitlines() if line.startswith("**Not measured:**")]
    assert "test top-1" in said and "dose" in said
    assert "Conditions" not in markdown
