"""The systems that can be run by name, a file a family; ``resolve`` turns a name into settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moge_bench.config import DENSE_RUN, RunConfig, build_config, nearest, set_path
from moge_bench.methods import METHODS
from moge_bench.presets import smoe, swin, tiny, unfair, upcycled, vmoe
from moge_bench.presets.preset import Preset

_FAMILIES = (tiny, smoe, vmoe, swin, upcycled, unfair)
PRESETS: dict[str, Preset] = {
    preset.name: preset for family in _FAMILIES for preset in family.PRESETS
}
_EXPERT_INIT = "expert_init_blocks"  # of the model
_BY_THEMSELVES = {
    "seed": "--seed, or base.seeds of a study",
    "method": "--method, or base.method or an axis of a study",
    "preset": "the preset's own argument, or base.preset of a study",
}


def find_preset(name: str) -> Preset:
    """Return the preset called ``name``; ValueError names the nearest."""
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}{nearest(name, list(PRESETS))}")
    return PRESETS[name]


def resolve(
    preset: str,
    method: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> RunConfig:
    """Return the validated config of ``preset`` run with ``method`` and dotted ``overrides``.

    ``method=None`` takes the preset's own: "smoe-s" and "smoge-s" are one system, run as MoE and
    as MoGE. An override of something the method does not have (``moe.top_k`` of a dense run,
    ``moe.group.size`` of a plain MoE run) has no effect, so that the arms of a grid that would
    compute the same are the same arm. What comes later wins: the preset's system, what it tuned
    for the method, ``overrides``, what the method fixes. ``model.expert_init_blocks=None``, as
    where nothing is given, are the blocks that are MoE in the other methods. Raises ValueError
    naming an unknown preset, method or field, with the nearest that exists.
    """
    found = find_preset(preset)
    method = found.method if method is None else method
    if method not in METHODS:
        raise ValueError(f"no method is called {method!r}{nearest(str(method), list(METHODS))}")
    rules = METHODS[method]
    values = found.system.model_dump(mode="json")
    values["model"][_EXPERT_INIT] = None
    given = {**found.tuned.get(method, {}), **(overrides or {})}
    for path, value in given.items():
        if path in _BY_THEMSELVES:
            raise ValueError(f"{path!r} cannot be set so; it has {_BY_THEMSELVES[path]}")
        set_path(values, path, value)
    for path, value in rules.sets.items():
        set_path(values, path, value)
    for path, value in (rules.derives(values) if rules.derives else {}).items():
        set_path(values, path, value)
    blocks = _blocks_of(values["moe"])
    for path in rules.drops:
        drop_path(values, path)
    _draw_alike(values, blocks)
    values.update(method=method, seed=seed)
    return build_config(values)


def _blocks_of(moe: Any) -> list[int]:
    """Return the blocks of MoE settings that nobody has checked yet; none where they are wrong."""
    blocks = moe.get("blocks") if isinstance(moe, dict) else None
    return list(blocks) if isinstance(blocks, list | tuple) else []


def _draw_alike(values: dict[str, Any], blocks: list[int]) -> None:
    """Let a dense model start from values as large as those of its MoE form.

    That is unless the setting names other ``blocks``; those that are not drawn are left out.
    """
    model = values["model"]
    drawn = model["upcycled_from"] in (None, DENSE_RUN)
    experts = blocks if values["moe"] is not None and model["upcycled_from"] is None else []
    if model[_EXPERT_INIT] is None:
        model[_EXPERT_INIT] = [] if experts or not drawn else blocks
    elif isinstance(model[_EXPERT_INIT], list | tuple):  # else the config says what it must be
        kept = [block for block in model[_EXPERT_INIT] if drawn and block not in experts]
        model[_EXPERT_INIT] = kept


def check_effect(config: RunConfig, overrides: Mapping[str, Any]) -> None:
    """Raise ValueError for one of the ``overrides`` that has no effect in ``config``.

    ``resolve`` lets it pass, for the arms of a grid; who asks for one run means what is set.
    """
    method = config.method
    rules = METHODS[method]
    asked = overrides.get(f"model.{_EXPERT_INIT}") or ()
    if gone := [block for block in asked if block not in config.model.expert_init_blocks]:
        raise ValueError(
            f"model.{_EXPERT_INIT}={list(asked)} would have no effect on blocks {gone}: "
            f"method={method!r} with model.upcycled_from={config.model.upcycled_from!r} draws no "
            "dense FFN there"
        )
    for path, value in overrides.items():
        gone = [section for section in rules.drops if f"{path}.".startswith(f"{section}.")]
        if gone:
            raise ValueError(
                f"{path}={value!r} would have no effect: method={method!r} has no {gone[0]}"
            )
        if path in rules.sets and value != rules.sets[path]:
            raise ValueError(
                f"{path}={value!r} would have no effect: method={method!r} fixes it to "
                f"{rules.sets[path]!r}; take another method, one of {', '.join(METHODS)}"
            )


def drop_path(values: dict[str, Any], path: str) -> None:
    """Set the optional section ``path`` of nested ``values`` to None."""
    *parents, leaf = path.split(".")
    for name in parents:
        values = values[name]
    values[leaf] = None
