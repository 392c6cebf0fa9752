"""What names a run, and how records of older schemas become those of today.

``run_id`` hashes what a run computes from. A setting that is added later is declared with
``added(default, before=value)``: ``before`` is the value under which a run computes what it
computed before the setting existed, and there it is left out of the hash. So a new setting leaves
every id as it was, and a record that was written before it is read with ``before``. The preset's
name is not hashed: a study does not depend on today's presets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field

SCHEMA = 2  # of records; raise it with a function in _MIGRATIONS


def added(default: Any, *, before: Any, **constraints: Any) -> Any:
    """Return the pydantic field of a setting that did not exist from the start."""
    return Field(default, json_schema_extra={"before": before}, **constraints)


def not_hashed(**constraints: Any) -> Any:
    """Return the pydantic field of a text for people, which no result depends on."""
    return Field(json_schema_extra={"hashed": False}, **constraints)


def hashed_settings(settings: BaseModel) -> dict[str, Any]:
    """Return the JSON form of ``settings`` less what is not hashed and what is as before."""
    return _prune(settings, settings.model_dump(mode="json"))


def _prune(model: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, info in type(model).model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        value = values[name]
        if extra.get("hashed") is False or ("before" in extra and value == extra["before"]):
            continue
        inner = getattr(model, name)
        kept[name] = _prune(inner, value) if isinstance(inner, BaseModel) else value
    return kept


def fill_before(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Return settings of ``model`` as a record has them, with ``before`` for what came after it."""
    missing = {
        name: info.json_schema_extra["before"]
        for name, info in model.model_fields.items()
        if name not in values
        and isinstance(info.json_schema_extra, dict)
        and "before" in info.json_schema_extra
    }
    return {**values, **missing}


def digest_of(values: Any) -> str:
    """Return 16 hex digits of the SHA-256 of ``values`` as canonical JSON."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def migrate(record: Any) -> dict[str, Any]:
    """Return the JSON of a record in today's schema; ValueError says why it cannot be."""
    if not isinstance(record, dict):
        raise ValueError(f"a record is a JSON object, got {type(record).__name__}")
    found = record.get("schema", record.get("schema_version"))
    if isinstance(found, int) and found > SCHEMA:
        raise ValueError(
            f"it has schema {found} and this version reads up to {SCHEMA}: it was written by a "
            "newer moge-bench; update this one"
        )
    while found != SCHEMA:
        if not isinstance(found, int) or found not in _MIGRATIONS:
            raise ValueError(f"it has schema {found!r}; schemas 1 to {SCHEMA} are known")
        record = _MIGRATIONS[found](record)
        found = record["schema"]
    return record


def _from_1(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 named a run by the hash of all settings, preset included, and held its speed.

    The speed of a run is not in schema 2: scripts/migrate_results.py moves it to results/speed.
    """
    missing = [name for name in ("hash", "config", "seed", "code", "device") if name not in record]
    if missing:
        raise ValueError(f"it has schema 1 and lacks {', '.join(missing)}")
    if not isinstance(record["config"], dict) or not isinstance(record["device"], str):
        raise ValueError("it has schema 1, where config must be an object and device text")
    if digest_of(record["config"]) != record["hash"]:
        raise ValueError(
            f"its hash {record['hash']!r} is not that of its config, {digest_of(record['config'])}"
        )
    kept = {
        name: value
        for name, value in record.items()
        if name not in ("schema_version", "hash", "config", "speed", "seed")
    }
    settings = {**record["config"], "device": record["device"].split(":")[0]}
    return {**kept, "schema": 2, "settings": settings, "seed": record["seed"]}


_MIGRATIONS: dict[Any, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
