"""From plain values to a validated config, with errors for people."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from moge_bench.config.schema import RunConfig


def build_config(values: dict[str, Any]) -> RunConfig:
    """Validate ``values``; ValueError gives one line a wrong field: its path, value and reason."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for issue in error.errors():
            path = ".".join(str(part) for part in issue["loc"]) or "config"
            given = (
                "" if isinstance(issue["input"], (dict, BaseModel)) else f", got {issue['input']!r}"
            )
            lines.append(f"{path}: {issue['msg'].removeprefix('Value error, ')}{given}")
        raise ValueError("; ".join(lines)) from None
