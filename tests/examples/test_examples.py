"""The examples run, and do what they say."""

import runpy
from pathlib import Path

import pytest
import torch

from moge_bench import group_norm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_is_tested():
    tested = {"finetune_moe", "loss_on_any_moe", "router_in_your_layer"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_the_loss_on_any_moe(capsys):
    example = load("loss_on_any_moe")
    example["main"]()
    assert capsys.readouterr().out.count("\n") == 3
    torch.manual_seed(0)
    logits = torch.randn(12, 16)
    by_hand = 0.5 * group_norm(logits.softmax(-1))
    none, half = torch.zeros(3, 4, dtype=torch.bool), torch.tensor([[False, True]]).repeat(3, 2)
    megatron, tutel = example["megatron_style"], example["tutel_style"]
    torch.testing.assert_close(megatron(logits.view(3, 4, 16), none, 0.5), by_hand)
    counted = group_norm(logits.softmax(-1)[::2])  # every second column of (S, B) is padding
    torch.testing.assert_close(megatron(logits.view(3, 4, 16), half, 0.5), 0.5 * counted)
    torch.testing.assert_close(tutel(logits, torch.tensor(2.0), 0.5), 2 + by_hand)
    layer = example["PlainMoE"]()
    x = torch.randn(12, 16)
    y, scores = layer(x)
    term = example["plain_pytorch"](layer, x, 0.5) - (y - x).square().mean()
    torch.testing.assert_close(term, 0.5 * group_norm(scores))


def test_the_router_in_a_layer_learns():
    losses = load("router_in_your_layer")["main"](steps=3)
    assert len(losses) == 3 and all(0 < loss < 1 for loss in losses)


@pytest.mark.slow
def test_fine_tuning_draws_the_map(tmp_path):
    figure = tmp_path / "map.png"
    means = load("finetune_moe")["main"](
        ["--steps", "3", "--figure", str(figure), "--output", str(tmp_path / "run")]
    )
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert [*means] == ["before", "without the loss", "with the loss"]
    assert len({*means.values()}) == 3  # each training moved the gates, one by the loss besides


def test_the_neighbours_on_the_torus():
    """A 4 x 4 torus: each expert has four neighbours; 0 has 1, 3 beside it, 4, 12 above, below."""
    beside = load("finetune_moe")["neighbours"]()
    assert beside.sum(1).tolist() == [4] * 16
    assert beside[0].nonzero()[0].tolist() == [1, 3, 4, 12]
