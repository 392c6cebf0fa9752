"""What the pages show of studies is what the committed tables say."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def load_update():
    spec = importlib.util.spec_from_file_location("update", ROOT / "scripts/update_readme.py")
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    return update


@pytest.mark.parametrize("name", load_update().PAGES)
def test_tables_and_claims_are_of_the_committed_studies(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- answer " in text or "cannot be excluded" in text
    assert load_update().updated(text, ROOT / "results/studies") == text


def test_the_readme_opens_with_an_answer_and_two_pictures():
    opening = README[: README.index("\n## ")]
    assert opening.count("<!-- answer ") == 1 and opening.count("![") == 2
    said = opening.split("-->\n", 1)[1].splitlines()[0]
    assert said.startswith("**") and "95 % interval" in said and "n = " in said


def test_answers_are_of_the_named_studies_in_their_order(tmp_path):
    studies = [
        {"study": name, "question": f"Is it {name}?", "margin": 0.5} for name in ("a", "b", "c")
    ]
    (tmp_path / "answers.json").write_text(json.dumps({"studies": studies}))
    head = "| study | contrast | estimate | p | p, Holm | verdict |\n|:--|:--|--:|--:|--:|--:|\n"
    rows = [f"| {name} | x against y | **+1** | 0.1 | 0.3 | cannot tell |" for name in "abc"]
    (tmp_path / "answers.md").write_text(head + "\n".join(rows) + "\n\nMade by: tables.\n")
    page = "before\n<!-- answers c a -->\nold\n<!-- end of answers -->\nafter"
    lines = load_update().updated(page, tmp_path / "studies").splitlines()
    assert lines[4:6] == [
        f"| [Is it {name}?](results/studies/{name}/answer.md) | x against y | +1 | 0.5 | 0.1; 0.3 "
        "| cannot tell |"
        for name in "ca"
    ]
    assert lines[0] == "before" and lines[-1] == "after" and len(lines) == 8
    with pytest.raises(KeyError, match="d"):
        load_update().updated(page.replace("c a", "d"), tmp_path / "studies")


def test_a_claim_says_what_cannot_be_excluded():
    names = (
        "arm_id", "method", "baseline", "difference", "difference_low", "difference_high",
    )  # fmt: skip
    arms = [
        ("a", "moe", "", "", "", ""),
        ("b", "moge", "a", "0.5", "-1", "2"),
        ("c", "moge", "a", "-1.5", "-4.3", "1.3"),
    ]
    same = {
        "difference_unit": "points",
        "metric": "m",
        "split": "test",
        "survives_holm": "False",
        "difference_n": "3",
    }
    rows = [dict(zip(names, arm, strict=True)) | same for arm in arms]
    said = load_update().say(rows, metric="m", split="test", method="moge")
    assert "moge less moe, 2 comparisons, n = 3 seeds" in said
    assert "-1.50 to +0.50 points; 2 of 2 intervals hold zero, and none" in said
    assert "from -4.30 to +2.00 points, so a difference of up to 4.3 points cannot" in said
    for row in rows:
        row["difference_unit"] = ""
    said = load_update().say(rows, metric="m", split="test", method="moge")
    assert "-1.50 to +0.50; 2 of 2 intervals hold zero" in said
