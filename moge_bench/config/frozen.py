"""What every piece of configuration is: validated, immutable, and read as it was recorded."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

from moge_bench.config.identity import fill_before

RECORDED = {"recorded": True}  # the context in which a record's settings are validated


class Frozen(BaseModel):
    """A validated, immutable piece of configuration; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _as_recorded(cls, values: Any, info: ValidationInfo) -> Any:
        """In the context ``RECORDED`` fill in what a setting was before it existed."""
        recorded = bool(info.context) and isinstance(values, dict)
        return fill_before(cls, values) if recorded else values
