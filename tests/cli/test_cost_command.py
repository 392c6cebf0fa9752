"""ablate --dry-run --cost: what a study would cost, with no data and no GPU here."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from moge_bench.cli import app

ABLATIONS = Path(__file__).parents[2] / "ablations"


def run(*arguments):
    return CliRunner().invoke(app, ["ablate", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "runs", "lines"),
    [
        ("vision", 45, 6),  # 3 systems, dense, moe and moge, 5 seeds: moge costs what moe does
        ("imagenet", 18, 4),
        ("upcycling_imagenet", 18, 4),
        # 5 systems and 3 methods, less the dense ones that are one run: 2 dense, 5 moe, 5 moge.
        ("wikitext103", 36, 4),
    ],
)
def test_every_large_study(name, runs, lines, tmp_path):
    result = run(ABLATIONS / f"{name}.yaml", "--dry-run", "--cost", "--results", tmp_path / "none")
    assert result.exit_code == 0, result.output
    assert f"{runs} runs, 0 done, {runs} to do" in result.output
    costs = [line for line in result.output.splitlines() if "GPU hours" in line]
    assert len(costs) == lines + 1
    assert all("GiB of weights and optimiser + " in line for line in costs[:-1])
    assert "at 30% of 989 TFLOP/s" in costs[-1]
    assert not (tmp_path / "none").exists()


def test_cost_is_of_a_dry_run(tmp_path):
    result = run("--cost", "--results", tmp_path)
    assert result.exit_code == 2 and "give --dry-run too" in result.output
