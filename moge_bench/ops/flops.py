"""What torch's FlopCounterMode counts for the ops: their matrix products, as for its own ops.

Formulas see shapes, not values: a dropped choice (-1) counts as if an expert had run. Legend: T
tokens, k choices of a token, d hidden size, f hidden size of an expert, R = T * k rows.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from moge_bench.ops import extension, grouped_product  # noqa: F401  # which defines its ops


def _forward(
    x: Any, weights: Any, experts: Sequence[int], w_in: Sequence[int], *_: Any, **__: Any
) -> int:
    """Two products a row, of 2 d f each: R * 4 d f."""
    num_tokens, top_k = experts
    ffn_size, hidden_size = w_in[1:]
    return num_tokens * top_k * 4 * hidden_size * ffn_size


def _backward(
    grad_y: Any,
    x: Any,
    weights: Any,
    experts: Sequence[int],
    w_in: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """Two products for each of the forward's, for its input and for its matrix: R * 8 d f."""
    return 2 * _forward(x, weights, experts, w_in)


def _no_product(*_: Any, **__: Any) -> int:
    """Softmax, top-k, stencil, gather and sum: no matrix product, so 0, as torch counts softmax."""
    return 0


def _grouped_mm(
    rows: Sequence[int], matrices: Sequence[int], *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """2 l m n for (l, m) and (m, n), of which one or both also have N groups or are cut into N.

    Rows shared among N groups, (R, m) with (N, m, n): 2 R m n; their gradients, (m, R) with (R, n):
    the same. N products, (N, l, m) with (N, m, n): N times.
    """
    *batch, left, inner = rows
    return 2 * (batch[0] if batch and len(matrices) == 3 else 1) * left * inner * matrices[-1]


def _grouped_product(rows: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """2 R I O for rows (R, I) and a weight (N, O, I)."""
    return 2 * rows[0] * rows[1] * weight[1]


def _grouped_outer(grad: Sequence[int], rows: Sequence[int], *_: Any, **__: Any) -> int:
    """2 R O I for (R, O) and (R, I)."""
    return 2 * grad[0] * grad[1] * rows[1]


_NO_PRODUCT = (
    "route", "route_backward", "group_norm", "group_norm_backward", "dispatch", "combine",
    "combine_backward", "bias_activation", "bias_activation_backward",
)  # fmt: skip

_COUNTER = "torch.utils.flop_counter"


def _register(counter: ModuleType) -> None:
    register = counter.register_flop_formula
    register(torch.ops.moge.expert_ffn)(_forward)
    register(torch.ops.moge.expert_ffn_backward)(_backward)
    register([getattr(torch.ops.moge, name) for name in _NO_PRODUCT])(_no_product)
    register(torch.ops.moge.grouped_product)(_grouped_product)
    register(torch.ops.moge.grouped_outer)(_grouped_outer)
    # The experts' products in bfloat16 on CUDA, which torch 2.13 counts as 0.
    if torch.ops.aten._grouped_mm not in counter.flop_registry:
        register(torch.ops.aten._grouped_mm)(_grouped_mm)


class _WhenImported:
    """A finder on sys.meta_path that calls ``then`` with the module ``name`` when it is there."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec that the other finders have, with ``then`` after its execution."""
        if name != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._then(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# The counter brings triton with it, which takes longer to import than all of this package: it is
# not imported for those who count nothing.
if extension.load()[0] is not None:
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported(_COUNTER, _register))
