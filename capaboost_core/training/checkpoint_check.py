"""Whether a checkpoint's fields can belong to this run: types, ranges, shapes, finite values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from capaboost_core.training.checkpoint import State


@dataclass(frozen=True)
class Expected:
    """What the run that reads a checkpoint is like.

    Attributes:
        steps: Optimizer steps of an epoch.
        selects: Whether an epoch is selected.
    """

    epochs: int
    steps: int
    processes: int
    selects: bool
    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer

    def problem_of(self, state: State) -> str | None:
        """The first field that is wrong, or None."""
        try:
            return next(self._problems(state), None)
        except (TypeError, KeyError, AttributeError, ValueError, IndexError):
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
        yield from self._tensors(state.parameters)
        yield from self._optimizer(state.stepper["optimizer"])
        if state.epoch and not (_metrics(state.metrics) and state.metrics["epoch"] == state.epoch):
            yield "metrics"
        if (state.best is not None) != (self.selects and state.epoch > 0):
            yield "best"
        if state.best is not None:
            if not (_metrics(state.best["metrics"]) and isinstance(state.best["value"], float)):
                yield "best"
            yield from self._tensors(state.best["parameters"])

    def _position(self, state: State) -> Iterator[str]:
        place = state.position
        if state.epoch == self.epochs or not _whole(place["step"], 1, self.steps):
            yield f"step {place['step']} of an epoch of {self.steps}"
        if not _seconds(place["seconds"]) or len(place["processes"]) != self.processes:
            yield "position"
        for process in place["processes"]:
            if not (_finite(process["loss"]) and process["loss"].shape == () and len(process["numpy"]) == 4):
                yield "position"

    def _tensors(self, values: dict[str, Tensor]) -> Iterator[str]:
        if values.keys() != self.parameters.keys():
            yield "names of parameters"
        for name, parameter in self.parameters.items():
            value = values[name]
            if value.shape != parameter.shape or value.dtype != parameter.dtype or not _finite(value):
                yield f"parameter {name}"

    def _optimizer(self, saved: dict[str, Any]) -> Iterator[str]:
        own = self.optimizer.state_dict()["param_groups"]
        if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in own]:
            yield "groups of the optimizer"
        if any(there.keys() != here.keys() for there, here in zip(saved["param_groups"], own, strict=True)):
            yield "groups of the optimizer"
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, values in saved["state"].items():
            shape = ordered[index].shape
            if not all(_finite(value) and value.shape in (shape, ()) for value in values.values()):
                yield f"the optimizer's state of parameter {index}"


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _seconds(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _finite(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(value.isfinite().all())


def _metrics(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, (int, float)) for name, value in values.items()
    )
