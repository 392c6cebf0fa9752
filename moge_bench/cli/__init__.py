"""The command line, ``moge-bench``. Imported by nobody; heavy imports wait for their command."""

from __future__ import annotations

from typing import Any


def main() -> None:
    """Entry point of the console script. Everything is imported where Ctrl-C is provided for."""
    try:
        from moge_bench.cli.terminal import forgiving

        with forgiving():
            from moge_bench.cli.commands import app

            app()
    except KeyboardInterrupt:
        from moge_bench.cli.interrupted import tell

        raise SystemExit(tell("")) from None


def __getattr__(name: str) -> Any:
    if name == "app":
        from moge_bench.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
