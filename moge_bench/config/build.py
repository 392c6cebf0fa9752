"""From plain values to a validated config, with errors for people."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from moge_bench.config.faults import faults
from moge_bench.config.schema import RunConfig


def build_config(values: dict[str, Any]) -> RunConfig:
    """Validate ``values``; ValueError names each wrong field, what it got and what it wants."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(faults(error, RunConfig))) from None
