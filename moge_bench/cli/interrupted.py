"""Ctrl-C: one sentence that says what is kept and how to go on, and exit code 130."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

EXIT_CODE = 130  # 128 + SIGINT, as shells have it
_NOTHING = "nothing was changed"
_ANEW = "what is written is whole; the same command writes all of it anew"
_BUILDS = "nothing was recorded, the builds are kept; the same command starts again"
_GO_ON = {
    "train": "the same command goes on from the last state that was saved",
    "ablate": (
        "finished runs are kept; the same command does the rest, and goes on with runs that were "
        "under way from the last state that was saved"
    ),
    "analyze": "finished analyses are kept; the same command does the rest",
    "tables": _ANEW,
    "figures": _ANEW,
    "report": _ANEW,
    "perf run": "what is measured is in the report; the same command with --resume does the rest",
    "perf count": _BUILDS,
    "perf gate": _BUILDS,
    "perf bisect": _BUILDS,
    "perf series": "nothing was recorded; the same command measures anew",
    "perf history": "counted commits are in history.jsonl; the same command does the rest",
}


def tell(command: str) -> int:
    """Say on stderr how to go on after an interrupted ``command``; return the exit code."""
    sys.stderr.write(f"moge-bench: interrupted; {_GO_ON.get(command, _NOTHING)}\n")
    return EXIT_CODE


class Commands(TyperGroup):
    """Commands that can be interrupted at any moment: while they are parsed, and while they run."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the arguments; after Ctrl-C exit with a sentence."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except KeyboardInterrupt:
            raise typer.Exit(tell("")) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; after Ctrl-C exit with a sentence."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            above = [ctx.info_name] if ctx.parent else []
            command = " ".join([*above, ctx.invoked_subcommand or ""])
            raise typer.Exit(tell(command)) from None
