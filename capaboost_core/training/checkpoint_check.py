"""Whether a checkpoint's fields can belong to this run: types, ranges, shapes, finite values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from capaboost_core.training.checkpoint import State
from capaboost_core.training.position import try_streams


@dataclass(frozen=True)
class Expected:
    """What a run expects of its checkpoint.

    Attributes:
        steps: Optimizer steps of an epoch.
        selects: Whether an epoch is selected.
        method: The method's own state at the start.
    """

    epochs: int
    steps: int
    processes: int
    selects: bool
    parameters: dict[str, Tensor]
    method: dict[str, Any]
    optimizer: Optimizer

    def problem_of(self, state: State) -> str | None:
        """The first field that is wrong, or None."""
        try:
            return next(self._problems(state), None)
        except (TypeError, KeyError, AttributeError, ValueError, IndexError, OverflowError, RuntimeError):
            return "a field has a wrong type"

    def _problems(self, state: State) -> Iterator[str]:
        if not isinstance(state.surroundings, dict):
            yield "surroundings"
        if not _whole(state.epoch, 0, self.epochs):
            yield f"epoch {state.epoch} of a run of {self.epochs}"
        if state.position is None and state.epoch == 0:
            yield "epoch 0"
        if state.position is not None:
            yield from self._position(state)
        if not all(_seconds(value) for value in (state.train_seconds, state.wall_seconds)):
            yield "its times"
        yield from self._weights(state.parameters, state.method)
        yield from self._optimizer(state.stepper["optimizer"])
        if state.epoch and not (_metrics(state.metrics) and state.metrics["epoch"] == state.epoch):
            yield "metrics"
        if (state.best is not None) != (self.selects and state.epoch > 0):
            yield "best"
        if state.best is not None:
            if not (_metrics(state.best["metrics"]) and isinstance(state.best["value"], float)):
                yield "best"
            yield from self._weights(state.best["parameters"], state.best.get("method", {}))

    def _position(self, state: State) -> Iterator[str]:
        place = state.position
        if state.epoch == self.epochs or not _whole(place["step"], 1, self.steps):
            yield f"step {place['step']} of an epoch of {self.steps}"
        if not _seconds(place["seconds"]) or len(place["processes"]) != self.processes:
            yield "position"
        for process in place["processes"]:
            if not _fits(process["loss"], torch.zeros(())):
                yield "position"
            try_streams(process)

    def _weights(self, values: dict[str, Tensor], method: dict[str, Any]) -> Iterator[str]:
        if values.keys() != self.parameters.keys():
            yield "names of parameters"
        for name, parameter in self.parameters.items():
            if not _fits(values[name], parameter):
                yield f"parameter {name}"
        if not _alike(method, self.method):
            yield "the method's state"

    def _optimizer(self, saved: dict[str, Any]) -> Iterator[str]:
        own = self.optimizer.state_dict()["param_groups"]
        for there, here in zip(saved["param_groups"], own, strict=True):
            if not _finite_number(there["lr"]) or there | {"lr": 0} != here | {"lr": 0}:
                yield "groups of the optimizer"
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if not saved["state"].keys() <= set(range(len(ordered))):
            yield "the optimizer's state"
        for index, values in saved["state"].items():
            like = {"step": torch.zeros(()), "exp_avg": ordered[index], "exp_avg_sq": ordered[index]}
            if values.keys() != like.keys() or not all(_fits(values[name], like[name]) for name in like):
                yield f"the optimizer's state of parameter {index}"


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _seconds(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _finite_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _fits(value: Any, like: Tensor) -> bool:
    """Kernels trust the shapes of their arguments and would write past the end."""
    return _finite(value) and (value.shape, value.dtype, value.layout) == (like.shape, like.dtype, like.layout)


def _alike(value: Any, like: Any) -> bool:
    """Whether nested values have the same names and types, and tensors that fit."""
    if isinstance(like, Tensor):
        return _fits(value, like)
    if type(value) is not type(like):
        return False
    if isinstance(like, dict):
        return value.keys() == like.keys() and all(_alike(value[name], like[name]) for name in like)
    if isinstance(like, (list, tuple)):
        return len(value) == len(like) and all(map(_alike, value, like))
    return not isinstance(value, float) or math.isfinite(value)


def _finite(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(value.isfinite().all())


def _metrics(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, (int, float)) for name, value in values.items()
    )
