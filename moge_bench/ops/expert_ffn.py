"""moge::expert_ffn: dispatch, expert FFNs and combine, once the router has decided.

Public function and fake kernels of the op. Schema and kernels are in csrc/cpu/experts*, its
autograd in csrc/autograd_experts.cpp; the truth it is tested against is ops/reference_experts.py.
CUDA tensors go to ops/grouped_ffn.py instead.
Legend: T tokens, k choices of a token, N experts, d hidden size, f hidden size of an expert.
"""

from __future__ import annotations

from typing import Any

import torch

from moge_bench.ops import extension, grouped_ffn, reference_experts
from moge_bench.ops.reference import accumulation_dtype
from moge_bench.ops.reference_experts import ACTIVATIONS
from moge_bench.ops.validation import check_float, readable, require, unwrapped


def expert_ffn(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    w_in: torch.Tensor,
    b_in: torch.Tensor | None,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
    *,
    activation: str = "gelu",
    backend: str = "auto",
    check_experts: bool = True,
) -> torch.Tensor:
    """Send every token through the FFNs of its experts and add up what they return.

    y[t] = sum_i weights[t, i] FFN_{experts[t, i]}(x[t]),
    FFN_e(v) = w_out[e] activation(w_in[e] v + b_in[e]) + b_out[e].
    A choice whose ``experts`` entry is -1 was dropped: it adds nothing, and the gradient of its
    weight is 0.

    Args:
        x: (T, d), float32, float64 or bfloat16; on CUDA float16 too, and float64 only with
            backend="reference".
        weights: (T, k), of any of these dtypes, k >= 1; combined in float32 (float64 for float64
            ``x``).
        experts: (T, k), int64, or int32, which is converted; each from -1 to N - 1.
        w_in, w_out: (N, f, d) and (N, d, f), in the dtype of ``x``.
        b_in, b_out: (N, f) and (N, d), in the dtype of ``x``; both None for experts without bias.
        activation: "gelu" (exact, by erf), "relu" or "silu".
        backend: "auto", "extension" or "reference".
        check_experts: refuse an ``experts`` entry out of range. On CUDA that waits for the device
            and cannot be captured into a graph; False counts such a choice as dropped. The CPU's
            kernel always checks. How often else a call on CUDA waits: ``grouped_ffn.expert_ffn``.

    Under autocast ``x`` and the parameters are cast to the autocast dtype first (float64 is left
    alone, as autocast leaves it), like the input of a linear layer.

    Returns:
        y, (T, d), in the dtype that was computed in; differentiable once with respect to ``x``,
        ``weights`` and the parameters, by .backward() or torch.autograd.grad. Second derivatives,
        forward-mode derivatives and those of torch.func raise NotImplementedError, but for
        backend="reference", which has them. torch.func.vmap is one call a slice. The choices of a
        token are added in the order they are given, so y does not depend on the number of threads
        beyond what the matrix product does.

    Raises:
        TypeError, ValueError: naming the argument, what came and what would work.
    """
    if isinstance(experts, torch.Tensor) and experts.dtype == torch.int32:
        experts = experts.to(torch.int64)
    _check_shapes(_check_tensors(x, weights, experts, w_in, b_in, w_out, b_out))
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
    # Autocast knows no meta device.
    if x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w_in, w_out = x.to(dtype), w_in.to(dtype), w_out.to(dtype)
        b_in = None if b_in is None else b_in.to(dtype)
        b_out = None if b_out is None else b_out.to(dtype)
    _check_dtypes(x, w_in, b_in, w_out, b_out)
    weights = weights.to(accumulation_dtype(x.dtype))
    chosen = extension.choose_backend(backend, x, "expert_ffn")
    if chosen == "extension" and _on_gpu(x):
        with torch.autocast(x.device.type, enabled=False):
            return grouped_ffn.expert_ffn(
                x, weights, experts, w_in, b_in, w_out, b_out, activation, check_experts
            )
    if chosen == "extension":
        # It keeps the activations where a backward pass is to come, which its autograd knows.
        y, _ = torch.ops.moge.expert_ffn(
            x, weights, experts, w_in, b_in, w_out, b_out, activation, False
        )
        return y
    if check_experts:
        _check_experts(experts, w_in.shape[0])
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        return reference_experts.expert_ffn(
            x, weights, experts, w_in, b_in, w_out, b_out, activation
        )


def _on_gpu(x: torch.Tensor) -> bool:
    return x.device.type == "cuda"


def _check_tensors(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    w_in: torch.Tensor,
    b_in: torch.Tensor | None,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Check type, rank and device of every tensor, and the dtype of the routing; return by name."""
    named = {"x": x, "weights": weights, "experts": experts, "w_in": w_in, "w_out": w_out}
    if (b_in is None) != (b_out is None):
        missing = "b_in" if b_in is None else "b_out"
        raise ValueError(
            f"b_in and b_out must be given together or both be None; {missing} is None"
        )
    if b_in is not None and b_out is not None:
        named |= {"b_in": b_in, "b_out": b_out}
    ranks = {"x": "Td", "weights": "Tk", "experts": "Tk", "w_in": "Nfd", "b_in": "Nf",
             "w_out": "Ndf", "b_out": "Nd"}  # fmt: skip
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() != len(ranks[name]):
            raise ValueError(
                f"{name} must have shape ({', '.join(ranks[name])}), got {tuple(tensor.shape)}"
            )
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
    if experts.dtype != torch.int64:
        raise TypeError(
            f"experts must be int64 or int32, got {experts.dtype}; call experts.long() first"
        )
    check_float("weights", weights)
    return named


def _check_shapes(named: dict[str, torch.Tensor]) -> None:
    """Check that the sizes agree: T and k of the routing, N, f and d of the parameters."""
    num_tokens, hidden = named["x"].shape
    top_k = named["experts"].shape[1]
    num_experts, ffn_size = named["w_in"].shape[:2]
    if top_k < 1:
        raise ValueError(
            f"experts must hold at least one choice a token, got {tuple(named['experts'].shape)}"
        )
    if min(num_experts, ffn_size, hidden) < 1:
        raise ValueError(
            "w_in must have shape (N, f, d) with every size at least 1, got "
            f"{tuple(named['w_in'].shape)}"
        )
    wanted = {
        "experts": ((num_tokens, top_k), "(T, k) with the T of x"),
        "weights": ((num_tokens, top_k), "(T, k), as experts"),
        "w_in": ((num_experts, ffn_size, hidden), "(N, f, d) with the d of x"),
        "w_out": ((num_experts, hidden, ffn_size), "(N, d, f), w_in's sizes"),
        "b_in": ((num_experts, ffn_size), "(N, f), w_in's sizes"),
        "b_out": ((num_experts, hidden), "(N, d), w_in's sizes"),
    }
    for name, (shape, meaning) in wanted.items():
        if name in named and tuple(named[name].shape) != shape:
            got = tuple(named[name].shape)
            raise ValueError(f"{name} must be {meaning} = {shape}, got {got}")


def _check_dtypes(x: torch.Tensor, *parameters: torch.Tensor | None) -> None:
    """Check that x has a dtype that the experts take on its device, and the parameters the same."""
    check_float("x", x)
    if x.dtype == torch.float16 and x.device.type == "cpu":
        raise TypeError(
            "x must be float32, float64 or bfloat16, got torch.float16, which experts have on CUDA "
            "alone; take float32 or bfloat16 for x and the experts, as layer.bfloat16() does"
        )
    names = ("w_in", "b_in", "w_out", "b_out")
    for name, tensor in zip(names, parameters, strict=True):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(
                f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}; "
                "cast one of them, or run under torch.autocast"
            )


def _check_experts(experts: torch.Tensor, num_experts: int) -> None:
    """Check that every entry is -1 or the index of an expert."""
    wanted = f"experts must hold -1 (dropped) or indices from 0 to {num_experts - 1}"
    experts = unwrapped(experts)
    if not readable(experts):
        require((experts >= -1) & (experts < num_experts), wanted)
    elif experts.numel() > 0:
        low, high = (int(value) for value in torch.aminmax(experts))
        if low < -1 or high >= num_experts:
            raise ValueError(f"{wanted}, got {low if low < -1 else high}")


def _expert_ffn_fake(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    w_in: torch.Tensor,
    b_in: Any,
    w_out: Any,
    b_out: Any,
    activation: str,
    keep_activations: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = experts.shape[0] * experts.shape[1] if keep_activations else 0
    return x.new_empty(x.shape), x.new_empty((kept, w_in.shape[1]))


def _expert_ffn_backward_fake(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: Any,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
    *_: Any,
) -> tuple[torch.Tensor, ...]:
    num_experts, ffn_size, hidden = w_in.shape
    num_biases = 0 if b_out is None else num_experts
    return (
        x.new_empty(x.shape),
        weights.new_empty(weights.shape),
        w_in.new_empty(w_in.shape),
        x.new_empty((num_biases, ffn_size)),
        w_out.new_empty(w_out.shape),
        x.new_empty((num_biases, hidden)),
    )


if extension.load()[0] is not None:
    torch.library.register_fake("moge::expert_ffn", _expert_ffn_fake)
    torch.library.register_fake("moge::expert_ffn_backward", _expert_ffn_backward_fake)
