"""Checkpoints: atomic, with a checksum and the one before; resuming from one is bit-identical."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim import Optimizer

from capaboost.training.run_folder import CHECKPOINT, PREVIOUS
from capaboost.training.settings import flat
from capaboost_core.errors import UserError, is_no_memory
from capaboost_core.files import explained, write_atomically


@dataclass
class Position:
    """How far an epoch is, to the bit.

    Attributes:
        step: Optimizer steps done in it.
        seconds: Time they took.
        processes: For each process its random streams, and its part of the loss summed over the steps.
    """

    step: int
    seconds: float
    processes: list[dict[str, Any]]

    def restore(self, process: int, device: torch.device) -> Tensor:
        """Set the process's random streams, and return its part of the loss."""
        mine = self.processes[process]
        random.setstate(mine["python"])
        np.random.set_state(_numpy_state(mine))
        torch.set_rng_state(mine["torch"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(mine["device"], device)
        return mine["loss"].to(device)


def start_streams(seed: int, epoch: int, process: int) -> None:
    """Start all random streams of an epoch anew, so that a checkpoint between epochs need not hold them."""
    set_seed(int(np.random.SeedSequence((seed, epoch, process)).generate_state(1)[0]))


def capture_rng(loss: Tensor) -> dict[str, Any]:
    """This process's part of a position."""
    _, keys, *rest = cast(tuple, np.random.get_state())
    device = loss.device
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "loss": loss.cpu(),
    }


def _numpy_state(process: dict[str, Any]) -> tuple:
    keys, *rest = process["numpy"]
    return ("MT19937", keys.numpy().astype(np.uint32), *rest)


FORMAT = b"capaboost-checkpoint-2 sha256 "  # after torch's bytes, and followed by their SHA-256


@dataclass
class State:
    """What a run needs to resume.

    At an epoch's end this has no random streams: each epoch starts them anew from (seed, epoch, process).

    Attributes:
        fingerprint: The configuration that the run was started with, and a hash of its data.
        surroundings: Device, threads and versions of libraries.
        epoch: Finished epochs.
        position: Where in the next epoch the run stands, if not at its start: a `Position` as plain values.
        parameters: What a step may change of the model, by name; stepper holds the optimizer's state.
        best: Value, metrics, parameters and method of the best epoch, where a run selects one.
        metrics: Those of the last epoch.
        train_seconds: Time in training steps of finished epochs; wall_seconds counts all.
        method: The method's own state; empty for most.
        base: The fingerprint of the pretrained weights, as plain values.
    """

    fingerprint: dict[str, Any]
    surroundings: dict[str, Any]
    epoch: int
    position: dict[str, Any] | None
    parameters: dict[str, Tensor]
    stepper: dict[str, Any]
    best: dict[str, Any] | None
    metrics: dict[str, float]
    train_seconds: float
    wall_seconds: float
    method: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] | None = None


class Damaged(Exception):
    """A checkpoint that cannot be used, and why."""


class Checkpoints:
    """The newest checkpoint of a run folder, and the one before it."""

    def __init__(self, folder: Path):
        self.newest, self.previous = folder / CHECKPOINT, folder / PREVIOUS
        self.is_sound = False  # the newest: only then may it take the place of the one before

    def save(self, state: State) -> None:
        buffer = io.BytesIO()
        torch.save({field.name: getattr(state, field.name) for field in fields(state)}, buffer)
        buffer.write(FORMAT + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
        if self.is_sound:
            with explained("write", self.previous), suppress(FileNotFoundError):  # somebody has deleted it
                os.replace(self.newest, self.previous)
        write_atomically(self.newest, lambda file: file.write(buffer.getbuffer()))
        self.is_sound = True

    def load(
        self, fingerprint: dict[str, Any], problem_of: Callable[[State], str | None]
    ) -> tuple[State | None, str | None]:
        """The newest checkpoint that can be used, if there is any, and a warning if it is not the newest of all.

        Args:
            fingerprint: The configuration and data of the run that resumes.
            problem_of: What is wrong with a state's fields, if anything is.

        Raises:
            UserError: If no existing file can be used, or it belongs to a run with another fingerprint.
        """
        damage = None
        for path in (self.newest, self.previous):
            if not path.exists():
                continue
            try:
                state = _read(path)
                check_fingerprint(path.parent, state.fingerprint, fingerprint)
                if problem := problem_of(state):
                    raise Damaged(problem)
            except Damaged as error:
                damage = damage or f"{path} is damaged or of another version ({error})"
                continue
            self.is_sound = path == self.newest
            return state, f"{damage}; going on from {path.name}" if damage else None
        if damage:
            raise UserError(f"{damage}; choose another --output-dir")
        return None, None


def _read(path: Path) -> State:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(str(error.strerror)) from error
    payload, trailer = content[: -len(FORMAT) - 64], content[-len(FORMAT) - 64 :]
    if not trailer.startswith(FORMAT):
        raise Damaged("it does not end in a checksum")
    if trailer[len(FORMAT) :] != hashlib.sha256(payload).hexdigest().encode():
        raise Damaged("its checksum is wrong")
    try:
        state = State(**torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, TypeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        if is_no_memory(error):
            raise
        raise Damaged("it is not a checkpoint of a run") from error
    if not isinstance(state.fingerprint, dict):
        raise Damaged("it is not a checkpoint of a run")
    return state


def check_fingerprint(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to resume with other settings or data.

    Raises:
        UserError: If they differ; paths are compared by what they point to.
    """
    differing = differences(there, here)
    if differing:
        raise UserError(
            f"{folder} was run with other settings ({'; '.join(differing)}); "
            "give the same ones, or choose another --output-dir"
        )


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """One text for each setting that differs between two configurations."""
    there, here = flat(there), flat(here)
    return [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted(there.keys() | here.keys())
        if _resolved(there.get(key)) != _resolved(here.get(key))
    ]


def _resolved(value: Any) -> Any:
    """A path that exists, without slashes at its end and links; anything else as it is."""
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value


@dataclass(frozen=True)
class Expected:
    """The tensors that a run expects of its checkpoint.

    Its checksum finds damage. What remains is a checkpoint of other code, such as another version of timm: its tensors
    may have other names or shapes, which kernels trust and would write past the end.

    Attributes:
        parameters: What a step may change, by name.
        method: The method's own state at the start.
    """

    parameters: dict[str, Tensor]
    method: dict[str, Any]
    optimizer: Optimizer

    def problem_of(self, state: State) -> str | None:
        """What does not fit, or None."""
        try:
            fits = {
                "parameters": _alike(state.parameters, self.parameters),
                "the method's state": _alike(state.method, self.method),
                "the optimizer's state": self._fits_optimizer(state.stepper["optimizer"]),
                "the best epoch": state.best is None or _alike(state.best["parameters"], self.parameters),
            }
        except (TypeError, KeyError, AttributeError):
            return "a field has a wrong type"
        return next((name for name, right in fits.items() if not right), None)

    def _fits_optimizer(self, saved: dict[str, Any]) -> bool:
        groups = self.optimizer.state_dict()["param_groups"]
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            i: {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            for i, parameter in enumerate(ordered)
            if i in saved["state"]  # parameters that never had a gradient have no state
        }
        return _alike(saved["state"], moments) and _alike(saved["param_groups"], groups)


def _alike(value: Any, like: Any) -> bool:
    """Whether nested values have the same names and types, and tensors the same shapes."""
    if isinstance(like, Tensor):
        layout = (like.shape, like.dtype, like.layout)
        return isinstance(value, Tensor) and (value.shape, value.dtype, value.layout) == layout
    if type(value) is not type(like):
        return False
    if isinstance(like, dict):
        return value.keys() == like.keys() and all(_alike(value[name], like[name]) for name in like)
    if isinstance(like, (list, tuple)):
        return len(value) == len(like) and all(map(_alike, value, like))
    return True
