"""The README tells the truth: the committed table, Python that runs, a valid grid."""

import importlib.util
import re
from pathlib import Path

import torch

from moge_bench.study.grid import parse_grid

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def load_update():
    spec = importlib.util.spec_from_file_location("update", ROOT / "scripts/update_readme.py")
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    return update


def test_table_and_claim_are_of_the_committed_study():
    assert load_update().updated(README, ROOT / "results/studies") == README
    (header,) = [line for line in README.splitlines() if line.startswith("| experts")]
    assert header.count("|") <= 7  # six columns
    assert "cannot be excluded" in README


def test_a_claim_says_what_cannot_be_excluded():
    names = (
        "arm_id", "method", "baseline", "difference", "difference_low", "difference_high",
    )  # fmt: skip
    arms = [
        ("a", "moe", "", "", "", ""),
        ("b", "moge", "a", "0.5", "-1", "2"),
        ("c", "moge", "a", "-1.5", "-4.3", "1.3"),
    ]
    same = {"metric": "m", "split": "test", "survives_holm": "False", "difference_n": "3"}
    rows = [dict(zip(names, arm, strict=True)) | same for arm in arms]
    said = load_update().say(rows, metric="m", split="test", method="moge")
    assert "moge less moe, 2 comparisons, n = 3 seeds" in said
    assert "-1.50 to +0.50 points; 2 of 2 intervals hold zero, and none" in said
    assert "from -4.30 to +2.00 points, so a difference of up to 4.3 points cannot" in said


def test_python_runs_forward_and_backward():
    (code,) = blocks("python")
    logits = torch.randn(32, 64, requires_grad=True)
    names = {
        "logits": logits,
        "scores": torch.softmax(logits, dim=-1),
        "task_loss": logits.square().mean(),
        "x": torch.randn(8, 64),
    }
    exec(code, names)
    (names["loss"] + names["y"].sum() + names["aux"].loss).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


def test_the_example_grid_is_valid():
    (text,) = blocks("yaml")
    assert parse_grid(text, "README.md").configs


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
