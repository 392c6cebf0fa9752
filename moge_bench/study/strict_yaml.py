"""YAML as grid files are written in it: one mapping, no key twice, keys that are words."""

from __future__ import annotations

from typing import Any

import yaml

from moge_bench.config.words import keep_words, parse_yaml, string_settings

# Fields of the file and settings whose values are strings: "precision: no" is not False.
_STRINGS = string_settings() | {"name", "question", "preset", "data"}


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; here the second is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(
                    f"line {line}: a key must be a word, got a list or a mapping; text with "
                    "braces or brackets needs quotes"
                )
            if key.value in _STRINGS:
                keep_words(value)
            if key.value in seen:
                raise ValueError(f"{key.value!r} stands twice, again in line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_mapping(content: str) -> dict[str, Any]:
    """Return the mapping that ``content`` is; ValueError or yaml.YAMLError says what it is not."""
    values = parse_yaml(content, _Loader)
    if not isinstance(values, dict):
        raise ValueError(
            "a grid file is a mapping with name, question, base, axes, table; got "
            f"{type(values).__name__}"
        )
    return values
