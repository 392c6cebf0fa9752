"""Results whose tensors torch.compile, torch.export, DDP and FSDP can see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils import _pytree as pytree


def register(kind: type, tensors: tuple[str, ...], constants: tuple[str, ...]) -> None:
    """Make ``kind`` a pytree: attributes ``tensors`` are its leaves, ``constants`` go along.

    ``kind`` takes all of them by keyword. A saved export names it "moge_bench.<its name>".
    """

    def flatten(value: Any) -> tuple[list[Any], Any]:
        return [getattr(value, name) for name in tensors], [
            getattr(value, name) for name in constants
        ]

    def flatten_with_keys(value: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], Any]:
        children, context = flatten(value)
        keys = [pytree.GetAttrKey(name) for name in tensors]
        return list(zip(keys, children, strict=True)), context

    def unflatten(children: Iterable[Any], context: Any) -> Any:
        along = dict(zip(constants, context, strict=True))
        return kind(**dict(zip(tensors, children, strict=True)), **along)

    pytree.register_pytree_node(
        kind, flatten, unflatten,
        flatten_with_keys_fn=flatten_with_keys, serialized_type_name=f"moge_bench.{kind.__name__}",
    )  # fmt: skip
