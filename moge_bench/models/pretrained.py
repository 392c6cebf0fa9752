"""The weights of a dense model in transformers' format, put into a backbone of this package."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

_HEADS = ("classifier.", "lm_head.")  # may be another's: a head of other classes starts fresh

# What decides the function and leaves no trace in the weights' shapes, and its setting here.
_MUST_AGREE = {
    "image_size": "model.image_size",
    "patch_size": "model.patch_size",
    "num_attention_heads": "model.num_heads",
    "num_heads": "model.num_heads",
    "n_head": "model.num_heads",
    "depths": "model.depths",
    "window_size": "model.window_size",
    "hidden_act": "model.activation",
    "activation_function": "model.activation",
    "num_hidden_layers": "model.depth",
    "n_layer": "model.depth",
    **dict.fromkeys(
        ("use_absolute_embeddings", "pretrained_window_sizes", "scale_attn_weights",
         "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"), "the model here",
    ),
}  # fmt: skip


@torch.no_grad()
def load_dense(model: nn.Module, source: str) -> None:
    """Give ``model``, a dense backbone of transformers, the weights that ``source`` has.

    ``source`` is a folder that ``save_pretrained`` wrote, or a hub name. A classifier of another
    number of classes, or one that ``source`` lacks, keeps the values it has. The layer norms take
    the eps of those in ``source``. Raises ValueError, which names source and setting, for a model
    that cannot be read, of another family, that computes another function of its weights, or that
    has weights for which there is no place here, but for a head and a pooler.
    """
    try:
        loaded, told = type(model).from_pretrained(  # type: ignore[attr-defined]
            os.path.expanduser(source), output_loading_info=True, ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"model.upcycled_from={source!r} cannot be read as a {type(model).__name__}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from None
    _check_function(model.config, loaded.config, source)
    theirs, ours = loaded.state_dict(), model.state_dict()
    extra = sorted(n for n in theirs.keys() - ours.keys() if not n.startswith(_HEADS))
    extra = [name for name in extra if "pooler" not in name.split(".")]
    if extra:
        raise ValueError(
            f"model.upcycled_from={source!r} has {extra[0]}, for which there is no place here "
            f"({len(extra)} such weights): it must be a model of the same kind as `model`"
        )
    missing = {name for name in told["missing_keys"] if not name.startswith(_HEADS)}
    for name, value in ours.items():
        found = theirs.get(name)
        if found is not None and found.shape == value.shape and name not in told["missing_keys"]:
            value.copy_(found)
        elif not name.startswith(_HEADS):
            missing.add(name)
    shapes = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in _mismatched(told)]
    wrong = sorted(missing | {name for name in shapes if not name.startswith(_HEADS)})
    if wrong:
        raise ValueError(
            f"model.upcycled_from={source!r} has no {wrong[0]} of the shape "
            f"{tuple(ours[wrong[0]].shape)} ({len(wrong)} weights differ): it must "
            "be a model of the same sizes as the settings of `model`"
        )
    norms = {n: m for n, m in loaded.named_modules() if isinstance(m, nn.LayerNorm)}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = norms[name].eps


def _mismatched(told: dict[str, Any]) -> list[Any]:
    return list(told.get("mismatched_keys", ()))


def _check_function(ours: Any, theirs: Any, source: str) -> None:
    for name, setting in _MUST_AGREE.items():
        wanted, found = getattr(ours, name, None), getattr(theirs, name, None)
        if _plain(wanted) != _plain(found):
            raise ValueError(
                f"model.upcycled_from={source!r} has {name}={found!r}, and {setting} says "
                f"{wanted!r}"
            )


def _plain(value: Any) -> Any:
    """Return the value with lists as tuples, and a square's two sides as one number."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 2 and value[0] == value[1] else tuple(value)
    return value
