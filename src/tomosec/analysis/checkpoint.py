"""The state of a training between two epochs, as one safetensors file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tomosec.errors import InputError
from tomosec.tensorfile import UnreadableFileError, read_tensors, write_tensors

FORMAT = 1


@dataclass(slots=True)
class State:
    """How far a training is.

    Attributes:
        curves: a mapping per finished epoch.
        best, best_loss, best_epoch: weights of the lowest validation loss, on the CPU, where training can stop early.
    """

    curves: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_loss: float = math.inf
    best_epoch: int = -1

    @property
    def epochs_run(self) -> int:
        """Finished epochs."""
        return len(self.curves)


def save_checkpoint(
    path: Path,
    identity: Mapping[str, Any],
    state: State,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Replace the checkpoint by one of the present state, all or nothing.

    Raises:
        TomosecError: the disk is full or the folder cannot be written; the former checkpoint stays.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (state.best or {}).items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if isinstance(value, Tensor)}
    header = {
        "training-checkpoint": FORMAT,
        "identity": dict(identity),
        "curves": state.curves,
        "best_loss": state.best_loss if state.best is not None else None,
        "best_epoch": state.best_epoch,
        "scaler": scaler.state_dict(),
    }
    write_tensors(path, tensors, header)


def load_checkpoint(
    path: Path,
    identity: Mapping[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> State:
    """Put network, optimizer and scaler where the checkpoint was and return its state.

    Without a file nothing changes. A damaged file is warned about and passed over: training then starts again, which costs
    time and changes no number.

    Raises:
        InputError: the checkpoint belongs to another training.
    """
    # What processes that were killed while they wrote left behind; nobody else trains in this folder.
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    try:
        tensors, header = read_tensors(path)
    except FileNotFoundError:
        return State()
    except UnreadableFileError as error:
        warnings.warn(f"{error}; training starts again from its first epoch", RuntimeWarning, stacklevel=3)
        return State()
    if header.get("training-checkpoint") != FORMAT:
        raise InputError(f"{path}: not a training checkpoint of this version of tomosec; remove it to start again")
    # Through JSON both have lists and string keys, so they compare as written.
    different = [name for name, value in identity.items() if header["identity"].get(name) != value]
    if different:
        raise InputError(f"{path}: a checkpoint of another training (different {', '.join(different)}); remove it to start again")
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}}
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        group, name = key.split(".", 1)
        if group == "optimizer":
            index, _, name = name.partition(".")
            moments.setdefault(int(index), {})[name] = _like(parameters[int(index)], tensor)
        else:
            groups[group][name] = tensor
    network.load_state_dict(groups["network"])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    if header["scaler"]:
        scaler.load_state_dict(header["scaler"])
    best = groups["best"] or None
    return State(header["curves"], best, math.inf if best is None else header["best_loss"], header["best_epoch"])


def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Give a moment the memory order of its parameter again: another order may take another kernel and round differently."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
