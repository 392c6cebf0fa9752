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


def test_table_is_the_committed_one():
    spec = importlib.util.spec_from_file_location("update", ROOT / "scripts/update_readme.py")
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    assert update.updated(README, ROOT / "results/tables") == README
    assert "| dense" in README


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
