"""Argument checks shared by the public functions; each message says what came and what works."""

from __future__ import annotations

import functools
import math
from array import array
from typing import Any

import torch
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from moge_bench.ops.topography import (
    MAX_EXPERTS,
    Topography,
    resolve_group_size,
    resolve_map_shape,
    tap_values,
    taps_of_width,
    taps_on_device,
    taps_tensor,
)

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INDEX_DTYPES = (torch.int64, torch.int32)
NONFINITE = ("error", "propagate")


def name_dtypes(dtypes: tuple[torch.dtype, ...]) -> str:
    """Return the dtypes as a message lists them: "float32, float64 or bfloat16"."""
    *first, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(first)} or {last}"


def check_float(name: str, tensor: torch.Tensor, hint: str = "") -> None:
    """Check that ``tensor`` has a dtype that the ops take.

    On CUDA float64 is for backend="reference" alone; ``choose_backend`` says so.
    """
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be {name_dtypes(FLOAT_DTYPES)}, got {tensor.dtype}{hint}")


def check_matrix(name: str, tensor: torch.Tensor) -> None:
    """Check that ``tensor`` is (T, N), 1 <= N <= 1024, of a dtype that its device takes."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dim() != 2:
        raise ValueError(
            f"{name} must have shape (num_tokens, num_experts), got {tuple(tensor.shape)}; "
            "flatten batch and sequence first"
        )
    check_float(name, tensor, f"; call {name}.float() first")
    if not 1 <= tensor.shape[1] <= MAX_EXPERTS:
        raise ValueError(
            f"{name} must have 1 to {MAX_EXPERTS} experts in its last dimension, "
            f"got shape {tuple(tensor.shape)}"
        )


def check_noise(noise: torch.Tensor | None, logits: torch.Tensor) -> None:
    """Check that ``noise`` has the shape and device of ``logits`` and a floating dtype."""
    if noise is None:
        return
    if not isinstance(noise, torch.Tensor):
        raise TypeError(f"noise must be a torch.Tensor or None, got {type(noise).__name__}")
    check_float("noise", noise)
    if noise.shape != logits.shape or noise.device != logits.device:
        raise ValueError(
            f"noise must have the shape and device of logits, {tuple(logits.shape)} on "
            f"{logits.device}; got {tuple(noise.shape)} on {noise.device}"
        )


def check_bias(bias: torch.Tensor | None, logits: torch.Tensor) -> None:
    """Check that ``bias`` is (N,), on the device of ``logits``, of a floating dtype."""
    if bias is None:
        return
    if not isinstance(bias, torch.Tensor):
        raise TypeError(f"bias must be a torch.Tensor or None, got {type(bias).__name__}")
    check_float("bias", bias)
    if bias.shape != logits.shape[1:] or bias.device != logits.device:
        raise ValueError(
            f"bias must have an entry for every expert, shape {tuple(logits.shape[1:])} on "
            f"{logits.device}; got {tuple(bias.shape)} on {bias.device}"
        )


def check_mask(mask: torch.Tensor | None, like: torch.Tensor, name: str, dims: int) -> None:
    """Check that ``mask`` is bool, with the device and the first ``dims`` sizes of ``like``.

    ``name`` is what the message calls ``like``.
    """
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True for tokens that count, got {mask.dtype}")
    if mask.shape != like.shape[:dims] or mask.device != like.device:
        raise ValueError(
            f"mask must have an entry for every token of {name}, shape "
            f"{tuple(like.shape[:dims])} on {like.device}; got {tuple(mask.shape)} on {mask.device}"
        )


def check_index_dtype(dtype: torch.dtype) -> None:
    """Check the dtype that indices of experts are asked for in."""
    if dtype not in INDEX_DTYPES:
        raise TypeError(f"index_dtype must be one of {INDEX_DTYPES}, got {dtype!r}")


def check_nonfinite(nonfinite: str) -> None:
    """Check the name of the policy for NaN and infinite input."""
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {NONFINITE}, got {nonfinite!r}")


def is_exporting() -> bool:
    """Return whether torch.export records; before torch 2.7 also whether torch.compile traces.

    torch.compiler.is_exporting is for the same flag, but torch.compile takes it for True in 2.10
    and 2.11, and 2.4 has none.
    """
    return getattr(torch.compiler, "_is_exporting_flag", torch.compiler.is_compiling())


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` as it is outside torch.func, for a check: all slices of a vmap at once."""
    # torch.func.debug_unwrap, which torch 2.4 has not.
    while not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def readable(tensor: torch.Tensor) -> bool:
    """Return whether Python can read values of ``tensor`` and go on by them.

    Meta and fake tensors have none; a recorded graph (torch.export, make_fx) is for values to come;
    and inside torch.func.vmap there is one value a slice. torch.compile breaks its graph there.
    """
    if is_exporting() or tensor.is_meta:
        return False
    if torch.compiler.is_compiling():
        return True
    modes = torch._C._TorchDispatchModeKey
    if torch._C._get_dispatch_mode(modes.PROXY) is not None:
        return False
    whole = unwrapped(tensor)
    return whole.dim() == tensor.dim() and not isinstance(whole, (FakeTensor, FunctionalTensor))


def require(condition: torch.Tensor, message: str) -> None:
    """Raise ValueError with ``message`` unless every entry of ``condition`` is true.

    Where values cannot be read the check becomes part of the graph: RuntimeError when that runs.
    """
    if torch.compiler.is_compiling() or not readable(condition):
        torch._assert_async(condition.all(), message)
    elif not condition.all():
        raise ValueError(message)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError naming the first row of ``tensor`` that is not finite.

    Inside torch.func.vmap no row is named. Where values cannot be read the check becomes part of
    the graph, and fails as RuntimeError when that runs.
    """
    wanted = f"{name} must be finite, got NaN or inf"
    advice = "pass nonfinite='propagate' to let such rows through as documented"
    whole = unwrapped(tensor)
    if not readable(whole):
        require(torch.isfinite(whole), f"{wanted}; {advice}")
        return
    bad_T = ~torch.isfinite(whole).all(dim=-1)
    if bad_T.any():
        place = (
            f" in row {int(bad_T.nonzero()[0])} (rows counted from 0)" if bad_T.dim() == 1 else ""
        )
        raise ValueError(f"{wanted}{place}; {advice}")


def check_sigma(sigma: torch.Tensor) -> None:
    """Check that a ``sigma`` given as a tensor is a real number that no derivative is asked of."""
    if sigma.dim() != 0 or sigma.is_complex() or sigma.dtype == torch.bool:
        raise ValueError(
            f"sigma must be a number, None (box) or a real tensor of shape (), got "
            f"{tuple(sigma.shape)} {sigma.dtype}"
        )
    if sigma.requires_grad or forward_ad.unpack_dual(sigma).tangent is not None:
        raise ValueError("sigma is not differentiated: pass sigma.detach()")


def make_groups(
    matrix: torch.Tensor,
    map_shape: tuple[int, int] | None,
    group_size: int | str,
    sigma: float | torch.Tensor | None,
    stride: int,
    border: str,
    reduction: str,
    unit_energy: bool = False,
) -> tuple[torch.Tensor, Topography]:
    """Return (taps, topography) of the arguments that ``route`` and ``group_norm`` share.

    ``matrix`` is what they were called with, (T, N); the taps are on its device. What the others
    come to is remembered, since a router is called with the same ones again and again; not where a
    graph is traced, once, nor for tensors of another class, whose taps are for their modes to make.
    A ``sigma`` that is a tensor is read; where it cannot be (``readable``), or a graph is traced,
    which would be for its present value alone, the taps are computed from it. So are they from one
    on a GPU, which nothing waits for: it is not checked either, since a failed check there ends the
    process's use of the GPU.
    """
    shape = (int(matrix.shape[1]), map_shape, group_size)
    if isinstance(sigma, torch.Tensor):
        check_sigma(sigma)
        if torch.compiler.is_compiling() or not sigma.is_cpu or not readable(sigma):
            if not sigma.is_cuda:
                whole = unwrapped(sigma)
                require((whole > 0) & (whole < math.inf), "sigma must be positive and finite")
            _, topo = _groups(*shape, None, stride, border, reduction, unit_energy)
            return taps_of_width(topo.group_size, sigma, matrix.device), topo
        sigma = float(sigma)
    # int: a size that is traced (symbolic make_fx, torch.jit) is fixed, as the map is.
    arguments = (*shape, sigma, stride, border, reduction, unit_energy)
    recorded = torch.compiler.is_compiling() or (matrix.is_cuda and is_capturing())
    if not recorded and type(matrix) is torch.Tensor:
        try:
            return _remembered_groups(*arguments, matrix.device)
        except TypeError:  # an argument that cannot be hashed, or the error that is raised again
            pass
    values, topo = _groups(*arguments)
    if matrix.is_cuda:
        return taps_on_device(topo.group_size, sigma, matrix.device), topo
    return taps_tensor(values), topo


def is_capturing() -> bool:
    """Whether the current stream is captured: what is made then belongs to the graph.

    False where torch.compile traces, which is before anything runs.
    """
    if torch.compiler.is_compiling() or not torch.cuda.is_available():
        return False
    return torch.cuda.is_current_stream_capturing()


def _groups(
    num_experts: int,
    map_shape: tuple[int, int] | None,
    group_size: int | str,
    sigma: float | None,
    stride: int,
    border: str,
    reduction: str,
    unit_energy: bool = False,
) -> tuple[tuple[float, ...], Topography]:
    rows, cols = resolve_map_shape(map_shape, num_experts)
    group_size = resolve_group_size(group_size, rows, cols, border)
    values = tap_values(group_size, sigma)
    return values, Topography(rows, cols, group_size, stride, border, reduction, unit_energy)


@functools.lru_cache(maxsize=256, typed=True)  # typed: True is no group_size though it equals 1
def _remembered_groups(*arguments: Any) -> tuple[torch.Tensor, Topography]:
    *settings, device = arguments
    values, topography = _groups(*settings)
    with torch.inference_mode(False):
        # Not torch.tensor, which a mode or transform that is active now would wrap for its own use.
        taps = torch.frombuffer(array("d", values), dtype=torch.float64)
        if device.type == "cuda":
            taps = taps.to(device)
    return taps, topography
