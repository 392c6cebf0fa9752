"""String settings keep the words that YAML 1.1 reads as something else: no, on, 1984, 1_000."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from moge_bench.config.schema import RunConfig

_STRING, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


@functools.cache
def string_settings() -> frozenset[str]:
    """Return the dotted paths of the settings whose values are strings."""
    return frozenset(_string_fields(RunConfig, ""))


def _string_fields(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        kinds = (
            [annotation]
            if get_origin(annotation) is Literal
            else [annotation, *get_args(annotation)]
        )
        for kind in kinds:
            words = get_args(kind) if get_origin(kind) is Literal else ()
            if kind is str or (words and all(isinstance(word, str) for word in words)):
                yield prefix + name
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _string_fields(kind, f"{prefix}{name}.")


def keep_words(node: yaml.Node) -> None:
    """Make the scalar ``node``, or those of a sequence, the strings that were written.

    For the value of a string setting, before it is constructed; null stays null.
    """
    for scalar in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if isinstance(scalar, yaml.ScalarNode) and scalar.tag != _NULL:
            scalar.tag = _STRING


def read_value(path: str, text: str) -> Any:
    """Return the value that ``text`` gives the setting ``path`` on the command line.

    A string setting takes the text as it stands, quotes aside (a path may hold : or #); any other
    takes it as YAML. ValueError for what is not YAML.
    """
    plain = text[:1] not in ("'", '"') and text not in ("", "~", "null")
    if path in string_settings() and plain:
        return text
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date in month 13
        raise ValueError(f"{path}: the value is not YAML, got {text!r}") from None


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return what ``text`` holds, read by ``loader``, which executes nothing.

    yaml.YAMLError for text that is not YAML, is nested deeper than Python recurses, or has a tag on
    what it does not fit: PyYAML raises KeyError for ``!!bool x``, IndexError for ``!!int ""``.
    ValueError for a date that is none.
    """
    try:
        return yaml.load(text, loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        reason = f"a value does not fit its tag: {type(error).__name__} {error}"
        raise yaml.YAMLError(reason) from None
