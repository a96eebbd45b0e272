"""Checkpoints: atomic, with a checksum and the one before; resuming is bit-identical."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capaboost_core.errors import UserError, is_no_memory
from capaboost_core.files import explained, write_atomically
from capaboost_core.training.run_file import flat
from capaboost_core.training.run_folder import CHECKPOINT, PREVIOUS

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
                _check(state, problem_of)
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
        raise Damaged(error.strerror) from error
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


def _check(state: State, problem_of: Callable[[State], str | None]) -> None:
    problem = problem_of(state)
    if problem:
        raise Damaged(problem)


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
