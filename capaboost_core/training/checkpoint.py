"""Checkpoints: one file, whole or not there, from which a run goes on exactly."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capaboost_core.errors import UserError
from capaboost_core.files import write_atomically

CHECKPOINT, RESULT, METRICS = "checkpoint.pt", "result.json", "metrics.jsonl"


@dataclass
class State:
    """What a run needs to go on after its last finished epoch.

    Random streams are not among it: each epoch starts them anew from (seed, epoch, process).

    Attributes:
        fingerprint: The configuration that the run was started with.
        epoch: Finished epochs.
        parameters: Trained parameters by name; stepper holds the optimizer's state.
        best: Value, metrics and parameters of the best epoch, where a run selects one.
        metrics: Those of the last epoch.
        train_seconds: Time in training steps; wall_seconds counts evaluation and saving too.
    """

    fingerprint: dict[str, Any]
    epoch: int
    parameters: dict[str, Tensor]
    stepper: dict[str, Any]
    best: dict[str, Any] | None
    metrics: dict[str, float]
    train_seconds: float
    wall_seconds: float


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder in which a run would overwrite another; nothing is written.

    Raises:
        UserError: If the folder holds a run and `resume` is off, or only a result and it is on.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --output-dir")
    present = [name for name in (CHECKPOINT, RESULT, METRICS) if (folder / name).exists()]
    if present and not resume:
        raise UserError(f"{folder} holds a run already ({present[0]}); pass --resume or another --output-dir")
    if resume and RESULT in present and CHECKPOINT not in present:
        raise UserError(f"{folder} holds a result but no checkpoint to go on from; choose another --output-dir")


def save_checkpoint(folder: Path, state: State) -> None:
    content = {field.name: getattr(state, field.name) for field in fields(state)}
    write_atomically(folder / CHECKPOINT, lambda file: torch.save(content, file))


def load_checkpoint(folder: Path, fingerprint: dict[str, Any]) -> State | None:
    """The folder's checkpoint, or None if there is none yet.

    Raises:
        UserError: If the file is damaged, or belongs to a run with another configuration.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = State(**torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, TypeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or no checkpoint of a run; choose another --output-dir") from error
    differing = differences(state.fingerprint, fingerprint)
    if differing:
        raise UserError(
            f"{folder} was run with other settings ({'; '.join(differing)}); "
            "give the same ones, or choose another --output-dir"
        )
    return state


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """One text for each setting that differs between two configurations."""
    there, here = _flat(there), _flat(here)
    return [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
