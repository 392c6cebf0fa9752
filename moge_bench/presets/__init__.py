"""The systems that can be run by name, a file a family; ``resolve`` turns a name into settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
    compute the same are the same arm; ``moe.blocks`` alone tells a dense run which of its FFNs
    start as experts do. What comes later wins: the preset's system, what it tuned
    for the method, ``overrides``, what the method fixes. ``model.expert_init_blocks=None``, as
    where nothing is given, are the blocks that are MoE in the other methods. Raises ValueError
    naming an unknown preset, method or field, with the nearest that exists.
    """
    found = find_preset(preset)
    method = found.method if method is None else method
    if method not in METHODS:
        raise ValueError(f"no method is called {method!r}{nearest(str(method), list(METHODS))}")
    if found.for_one_method and method != found.method:
        raise ValueError(
            f"preset {preset!r} is for method {found.method!r} alone, as the authors had it; got "
            f"{method!r}: {preset.removesuffix('-unfair')!r} is for every method"
        )
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
    moe, asked = values["moe"], values["model"][_EXPERT_INIT]
    for path in rules.drops:
        drop_path(values, path)
    values["model"][_EXPERT_INIT] = _drawn(values, asked)
    values.update(method=method, seed=seed)
    config = build_config(values)
    if asked is None and _draws_dense_ffns(config):
        # As large as the experts of the other methods: else those differ in more than experts.
        blocks = _blocks("moe.blocks", moe["blocks"])
        known = tuple(sorted(block for block in blocks if 0 <= block < config.model.depth))
        init = {_EXPERT_INIT: known}
        config = config.model_copy(update={"model": config.model.model_copy(update=init)})
    return config


def _draws_dense_ffns(config: RunConfig) -> bool:
    """Whether the FFNs that experts stand for are drawn: by this run, or that which it is of."""
    source = config.model.upcycled_from
    return source == DENSE_RUN or (source is None and config.moe is None)


def _drawn(values: dict[str, Any], asked: Any) -> Any:
    """Return what is ``asked`` of initial values, less the blocks that are not drawn."""
    source, moe = values["model"]["upcycled_from"], values["moe"]
    if asked is None or source not in (None, DENSE_RUN):
        return []
    if source == DENSE_RUN or moe is None or not isinstance(asked, list | tuple):
        return asked  # if it is wrong, the config says what it must be
    return [block for block in asked if block not in _blocks("moe.blocks", moe["blocks"])]


def _blocks(name: str, value: Any) -> tuple[int, ...]:
    try:
        return TypeAdapter(tuple[int, ...]).validate_python(value)
    except ValidationError:
        raise ValueError(f"{name} must be a list of blocks, got {value!r}") from None


def check_effect(config: RunConfig, overrides: Mapping[str, Any]) -> None:
    """Raise ValueError for one of the ``overrides`` that has no effect in ``config``.

    ``resolve`` lets it pass, for the arms of a grid; who asks for one run means what is set.
    """
    method = config.method
    rules = METHODS[method]
    init = f"model.{_EXPERT_INIT}"
    asked = _blocks(init, overrides.get(init) or ())
    if idle := [block for block in asked if block not in config.model.expert_init_blocks]:
        raise ValueError(
            f"{init}={list(asked)} would have no effect on blocks {idle}: "
            f"method={method!r} with model.upcycled_from={config.model.upcycled_from!r} draws no "
            "dense FFN there"
        )
    for path, value in overrides.items():
        if path == "moe.blocks" and overrides.get(init) is None and _draws_dense_ffns(config):
            continue  # those start as experts do
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
