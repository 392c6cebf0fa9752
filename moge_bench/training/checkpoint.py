"""The state of a run between two steps, on disk: killed and resumed, a run gives the same record.

A safetensors file: tensors, and JSON in its header. Reading one executes nothing. It holds model,
optimiser, averaged weights, random generators, the place in the data and what was measured so far;
schedules are functions of the step. What each rank has of its own, generators and the experts that
are divided among them, is named "rank0." and so on. It is of one run and one state of the code: the
file's name says which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_model
from torch import nn

from moge_bench.moe.parallel import divided_parameters
from moge_bench.system import replaced, write_atomically

_MODEL, _OPTIMIZER, _RANDOM, _DATA = "model.", "optimizer.", "random.", "data.epoch"
_AVERAGE = "average."
Tensors = dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """What is needed beside the config to go on after ``step`` optimiser steps."""

    path: Path
    step: int
    tensors: Tensors
    measured: dict[str, Any]


def save_checkpoint(
    path: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    data_state: torch.Tensor,
    measured: dict[str, Any],
    of_ranks: list[Tensors],
) -> None:
    """Write the state after ``step`` steps to ``path``, whole or not at all.

    ``average`` has the averaged weights, where the run averages. ``data_state`` is that of
    ``BatchStream.state``; ``measured`` is plain JSON; ``of_ranks`` has the ``state_of_rank`` of
    each.
    """
    tensors = _training_state(model, optimizer, average)
    tensors = {name: value for name, value in tensors.items() if name not in of_ranks[0]}
    for rank, own in enumerate(of_ranks):
        tensors |= {f"{_of_rank(rank)}{name}": value for name, value in own.items()}
    tensors[_DATA] = data_state
    # Tied weights are one tensor under two names, which the format refuses: each gets its copy.
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    header = {"step": str(step), "measured": json.dumps(measured)}
    write_atomically(path, save(plain, header))


def _training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> Tensors:
    tensors = {f"{_MODEL}{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}.{name}": value for name, value in state.items()}
    if average is not None:
        tensors |= {f"{_AVERAGE}{name}": value for name, value in average.state_dict().items()}
    return tensors


def state_of_rank(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> Tensors:
    """Return what this process has alone, on the CPU: its random generators, its divided experts.

    Of these weights, optimiser's state and averaged weights.
    """
    divided = divided_parameters(model)
    numbers = {id(p): i for i, p in enumerate(_parameters(optimizer))}
    names = {f"{_MODEL}{name}" for name in divided}
    names |= {f"{_AVERAGE}module.{name}" for name in divided}
    states = tuple(f"{_OPTIMIZER}{numbers[id(p)]}." for p in divided.values())
    own = {
        name: value.detach().cpu()
        for name, value in _training_state(model, optimizer, average).items()
        if name in names or name.startswith(states)
    }
    return own | {f"{_RANDOM}{device}": state for device, state in random_state().items()}


def _of_rank(rank: int) -> str:
    return f"rank{rank}."


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the weights of ``model`` to ``path``, whole or not at all: for ``build_model``."""
    with replaced(path) as temporary:
        save_model(model, str(temporary))  # tied weights once


def random_state() -> Tensors:
    """Return the states of torch's generators, "cpu" and, with a GPU, "cuda", the current one's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint at ``path``, None where there is none; ValueError if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(path, int(header["step"]), tensors, json.loads(header["measured"]))
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged ({error}); delete it to start that run anew"
        ) from None


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
    rank: int = 0,
) -> torch.Tensor:
    """Put model, optimiser, average and what ``rank`` has alone back; return the data state.

    ValueError where the model or its optimiser is another than the one that was saved; the model
    is of no use then.
    """
    tensors = checkpoint.tensors | _below(checkpoint.tensors, _of_rank(rank))
    try:
        if average is not None:
            average.load_state_dict(_below(tensors, _AVERAGE))
        return _restore(tensors, model, optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"checkpoint {checkpoint.path} is of another model or another state of the code "
            f"({reason}); delete it to start that run anew"
        ) from None


def _restore(tensors: Tensors, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    model.load_state_dict(_below(tensors, _MODEL))
    parameters = _parameters(optimizer)
    states: dict[int, Tensors] = {}
    for name, value in _below(tensors, _OPTIMIZER).items():
        index, _, field = name.partition(".")
        like = parameters[int(index)]
        if value.shape == like.shape:
            # A file keeps no memory format. The fused optimiser goes through memory, so its state
            # must lie there as the parameter does (channels last, for one).
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        states.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    generators = _below(tensors, _RANDOM)
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"])
    return tensors[_DATA]


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
