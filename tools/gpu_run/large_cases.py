"""Cases that fill a GPU, which the core set (2 to 16 MB, so in L2) does not.

python -m tools.gpu_run.large_cases FOLDER [compiled]
"""

from __future__ import annotations

import sys
from pathlib import Path

from moge_bench.perf import bench, report, rows
from moge_bench.perf.candidates import Options
from moge_bench.perf.registry import Case

ROUTERS = (
    Case("router", 1 << 20, 64, 2, 3),
    Case("router", 1 << 16, 64, 2, 3),
    Case("router", 1 << 18, 256, 8, 3),
    Case("router", 1 << 16, 160, 6, 3),  # a warp a token
    Case("router", 1 << 20, 64, 2, 3, dtype="bf16"),
    Case("router", 1 << 16, 64, 2, 3, dtype="bf16"),
)
LAYERS = tuple(
    Case("moe_layer", 16384, n, 2, 3, dtype="bf16", hidden_size=1024, ffn_size=2048)
    for n in (32, 8)
)


def main() -> None:
    """Run the cases, writing after every one, and print a line a row."""
    folder, compiled = Path(sys.argv[1]), sys.argv[2:] == ["compiled"]
    cases = ROUTERS[:2] if compiled else (*ROUTERS, *LAYERS)
    options = Options(device="cuda")
    settings = bench.Settings(rounds=20, compiled=compiled, peers=not compiled, options=options)
    facts, result = rows.environment("cuda"), []
    for case in cases:
        result += bench.run_case(case, settings)
        report.write(result, facts, folder, "bench_large_compiled" if compiled else "bench_large")
    for row in result:
        print(f"{row.case:52} {row.candidate:24} {row.status:14} {row.median_ms} ms "
              f"{row.gb_per_s or row.gflop_per_s} of copy {row.share_of_copy} ratio "
              f"{row.ratio_to_ours} {row.detail if row.status != rows.OK else ''}")  # fmt: skip


if __name__ == "__main__":
    main()
