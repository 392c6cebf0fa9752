"""What pydantic found wrong, in the words of this package: the field as a user writes it, and why.

One writer for settings, study files, records, manifests and whatever else is validated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from moge_bench.config.overrides import nearest

# Type of pydantic's error: what the value must be, of the numbers that come with it.
_MUST: dict[str, Callable[[dict[str, Any]], str]] = {
    "bool": lambda _: "true or false",
    "dict": lambda _: "a mapping",
    "finite_number": lambda _: "a finite number",
    "float": lambda _: "a number",
    "greater_than": lambda of: f"above {of['gt']:g}",
    "greater_than_equal": lambda of: f"at least {of['ge']:g}",
    "int": lambda _: "a whole number",
    "less_than": lambda of: f"below {of['lt']:g}",
    "less_than_equal": lambda of: f"at most {of['le']:g}",
    "list": lambda _: "a list",
    "literal_error": lambda of: of["expected"],
    "model": lambda _: "a mapping",
    "string": lambda _: "text",
    "string_pattern_mismatch": lambda of: f"text that matches {of['pattern']}",
    "too_long": lambda of: f"a list of at most {of['max_length']}",
    "too_short": lambda of: f"a list of at least {of['min_length']}",
    "tuple": lambda _: "a list",
}
_WITH_MEANING = ("list", "too_long", "too_short", "tuple")  # what the list is of helps to mend it
_Model = TypeVar("_Model", bound=BaseModel)
_ENDS = ("_attributes_type", "_type", "_parsing", "_parsing_size", "_from_float")


def faults(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return a sentence for each fault of what was to be a ``model``: field, what it got, wants."""
    return [_sentence(dict(issue), model) for issue in error.errors()]


def read_model(path: Path, model: type[_Model], what: str, mend: str) -> _Model:
    """Return the ``model`` whose JSON is at ``path``.

    ValueError where it cannot be read: "PATH is not WHAT: its first fault; MEND".
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = faults(error, model)[0]
    except OSError as error:
        reason = str(error)
    raise ValueError(f"{path} is not {what}: {reason}; {mend}")


def _sentence(issue: dict[str, Any], model: type[BaseModel]) -> str:
    kind, of, given = issue["type"], issue.get("ctx", {}), issue["input"]
    if kind == "json_invalid":
        return f"not JSON: {of['error']}"
    path, names, meaning = _locate(issue["loc"], model)
    path = path or "it"
    if kind == "extra_forbidden":
        return f"no field is called {path!r}{nearest(str(issue['loc'][-1]), names)}"
    if kind.startswith("union_tag"):
        path = ".".join(filter(None, [path, of["discriminator"].strip("'")]))
        if kind == "union_tag_not_found":
            return f"{path} is missing"
        return f"{path} must be {of['expected_tags']}, got {of['tag']!r}"
    meaning = f" ({meaning})" if meaning else ""
    if kind == "missing" and isinstance(issue["loc"][-1], int):
        list_path, _, index = path.rpartition(".")
        return f"{list_path}: value {int(index) + 1} is missing{meaning}, got {_shown(given)}"
    if kind == "missing":
        return f"{path} is missing{meaning}"
    stem = next((kind[: -len(end)] for end in _ENDS if kind.endswith(end)), kind)
    if stem in _MUST:
        meaning = meaning if stem in _WITH_MEANING else ""
        return f"{path} must be {_MUST[stem](of)}{meaning}, got {_shown(given)}"
    return _own_words(path, issue["msg"].removeprefix("Value error, "), given)


def _own_words(path: str, text: str, given: Any) -> str:
    """Return what a validator of this package says, with what it got where it does not say that."""
    silent = isinstance(given, (dict, BaseModel)) or repr(given) in text
    where = "" if path == "it" else f"{path}: "
    return f"{where}{text}" if silent else f"{where}{text}, got {_shown(given)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _locate(loc: tuple[Any, ...], model: type[BaseModel]) -> tuple[str, list[str], str]:
    """Return the dotted path of ``loc``, the names beside its last, what its field is for.

    pydantic puts the tag of a discriminated union into the path (data.images.flip), which nobody
    writes; it is left out.
    """
    path: list[str] = []
    owners, meaning = [model], ""
    for part in loc:
        if len(owners) > 1:
            tagged = [owner for owner in owners if part in _tags(owner)]
            owners = tagged or owners
            if tagged:
                continue
        path.append(str(part))
        names = _names(owners)
        if isinstance(part, int):
            continue
        field = next((f for o in owners for n, f in o.model_fields.items() if part in (n, f.alias)),
                     None)  # fmt: skip
        owners = [] if field is None else list(_models(field.annotation))
        meaning = (field.description or "") if field is not None else ""
    return ".".join(path), names if loc else [], meaning


def _names(owners: list[type[BaseModel]]) -> list[str]:
    return [f.alias or name for owner in owners for name, f in owner.model_fields.items()]


def _tags(owner: type[BaseModel]) -> Iterator[Any]:
    """Yield the words that tell ``owner`` from others of its union: its fields of one word."""
    for field in owner.model_fields.values():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            yield get_args(field.annotation)[0]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a field can hold: alone, in a tuple, optional, or one of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
