"""The command line of moge-bench with the state of a run saved after every step: kills.py.

The processes that train import this module as their main one, so they save as often.
"""

from __future__ import annotations

from moge_bench.training import loop

assert loop.train.__kwdefaults__ is not None
loop.train.__kwdefaults__["checkpoint_every_s"] = 0.0

if __name__ == "__main__":
    from moge_bench.cli import main

    main()
