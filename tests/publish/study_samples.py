"""Studies made by hand for tests of tables and figures: records as runs would leave them."""

from record_samples import make_pass, make_record, make_speed

from moge_bench.runs.record import CurvePoint
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.answer import Answer, make_answer
from moge_bench.study.frame import Results, collect
from moge_bench.study.grid import Grid, parse_grid
from moge_bench.study.manifest import make_manifest, manifest_path, read_manifest, save_manifest

ACCURACY = {"dense": 70.0, "moe": 75.0, "moge": 76.0}
SPEED = {"dense": (2000.0, 10.0), "moe": (1000.0, 20.0), "moge": (990.0, 20.5)}

ROWS = """
name: golden
question: Is MoGE better?
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes:
  method: [dense, moe, moge]
  moe.group.size: [2, 3]
table:
  rows: [moe.group.size, method]
  metrics: [top1_accuracy, peak_memory_mib, tokens_per_second, active_parameters]
"""
ONE_SEED = """
name: golden
question: What matters?
base: {preset: tiny-vit, seeds: 1}
"""  # axes and table follow
PIVOT = ROWS.replace("rows: [moe.group.size, method]", "rows: moe.group.size\n  columns: method")


def golden_accuracy(config) -> float:
    """Seed s adds s to the method's accuracy, and 2 s for MoGE."""
    return ACCURACY[config.method] + (2 if config.method == "moge" else 1) * config.seed


def make_study(
    root, text: str = ROWS, accuracy=golden_accuracy, speed: bool = True, runs: bool = True
) -> Grid:
    """Write manifest, records and speed of a study; the loss at step s is the seed over s."""
    grid = parse_grid(text, "golden")
    save_manifest(root, make_manifest(grid))
    store = RecordStore(root)
    for config in grid.configs if runs else ():
        curve = [
            CurvePoint(step=step, name="task_loss", split="training", value=config.seed / step)
            for step in (1, 2)
        ]
        store.write(make_record(config, accuracy(config), curves=curve))
    if speed:
        arms = {arm.arm_id: make_speed(*SPEED[arm.configs[0].method]) for arm in grid.arms}
        SpeedStore(root).add(grid.file.name, make_pass(arms))
    return grid


def read_study(root, name: str = "golden") -> Results:
    """Collect the study as the commands do."""
    manifest = read_manifest(manifest_path(root, name))
    return collect(manifest, RecordStore(root), SpeedStore(root))


def read_answer(root, name: str = "golden") -> Answer:
    """Answer the study as the commands do."""
    return make_answer(read_study(root, name))


def cells(markdown: str, title: str) -> list[list[str]]:
    """Return header and rows of the table under ``title``."""
    lines = markdown.splitlines()
    after = lines[lines.index(f"### {title}") + 2 :]
    table = after[: after.index("")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [rows[0], *rows[2:]]


def caption(markdown: str, title: str) -> str:
    """Return the line under the table under ``title``."""
    lines = markdown.splitlines()
    after = lines[lines.index(f"### {title}") + 2 :]
    return after[after.index("") + 1]
