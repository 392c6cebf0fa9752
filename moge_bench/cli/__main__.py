"""`python -m moge_bench.cli` is `moge-bench`."""

from moge_bench.cli import main

main()
