"""A study of many arms: the work grows with them, not with their square. Calls are counted."""

import cProfile
import pstats

from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.frame import collect
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import compare_manifest, make_manifest, save_manifest

GRID = """
name: many
question: How much work are many arms?
base: {{preset: tiny-vit, seeds: 2}}
axes:
  training.batch_size: {sizes}
  method: [moe, moge]
table: {{rows: training.batch_size, columns: method, metrics: top1_accuracy}}
"""


def calls(root, count):
    """Return how many functions are called from the study's file to its arms with baselines."""
    sizes = list(range(16, 16 + count))
    with cProfile.Profile() as profile:
        manifest = make_manifest(parse_grid(GRID.format(sizes=sizes), "many"))
        save_manifest(root, manifest)
        compare_manifest(root, manifest)
        results = collect(manifest, RecordStore(root), SpeedStore(root))
    assert len(results.arms) == 2 * count and len(results.baselines) == count
    return pstats.Stats(profile).total_calls


def test_twice_the_arms_are_twice_the_work(tmp_path):
    calls(tmp_path / "first", 4)  # what is imported or remembered is counted here
    few, many = calls(tmp_path / "few", 30), calls(tmp_path / "many", 60)
    assert many < 2.2 * few
