"""The training loop of every task: epochs, metrics, checkpoints, resuming, selection.

Nothing in an epoch makes the host wait for the device.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from capaboost_core.errors import DivergedError
from capaboost_core.inject import trainable_parameters
from capaboost_core.modes import merged
from capaboost_core.training.checkpoint import METRICS, State, check_folder, load_checkpoint, save_checkpoint
from capaboost_core.training.optimize import Stepper
from capaboost_core.training.progress import MetricsFile, Progress
from capaboost_core.training.task import Task
from capaboost_core.training.train_section import TrainSection


@dataclass(frozen=True)
class FitResult:
    """How a run went; times are summed over interruptions.

    Attributes:
        metrics: The last epoch's line of `metrics.jsonl`, or the selected epoch's metrics.
        epoch: The epoch, from 1, whose weights the model has now.
    """

    metrics: dict[str, float]
    epoch: int
    examples_per_second: float
    wall_seconds: float


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    task: Task,
    settings: TrainSection,
    folder: Path,
    fingerprint: dict[str, Any],
    select_by: str | None = None,
    resume: bool = False,
) -> FitResult:
    """Train the model's trainable parameters, on the model itself.

    After each epoch the folder has a line more in `metrics.jsonl` and an atomic checkpoint.

    Args:
        accelerator: As `make_accelerator` makes it.
        model: Adapted already, on any device.
        task: Batches, loss and evaluation.
        settings: How to train.
        folder: Where the run lives.
        fingerprint: The configuration; a resumed run has to have the same.
        select_by: Metric of `task.evaluate` whose first best epoch gives the final weights; without it
            they are the last epoch's.
        resume: Go on from the folder's checkpoint, to the bit as if there had been no interruption.

    Raises:
        UserError: If the folder holds another run, or the loss is no longer finite.
    """
    check_folder(folder, resume)
    fingerprint = fingerprint | {"processes": accelerator.num_processes, "examples": task.examples}
    run = _Run(accelerator, model, task, settings, folder, fingerprint, select_by)
    state = load_checkpoint(folder, fingerprint) if resume else None
    if resume:
        found = f"going on after epoch {state.epoch}" if state else "no checkpoint yet, starting from the beginning"
        accelerator.print(f"{folder}: {found}")
    accelerator.wait_for_everyone()  # no process writes before all have checked
    return run.complete(state)


class _Run:
    def __init__(self, accelerator, model, task, settings, folder, fingerprint, select_by):
        self.accelerator, self.task, self.settings, self.folder = accelerator, task, settings, folder
        self.fingerprint, self.select_by = fingerprint, select_by
        self.parameters = trainable_parameters(model)
        self.steps = len(task.batches(0))
        self.stepper = Stepper(accelerator, model, list(self.parameters.values()), settings, self.steps)
        self.bare = accelerator.unwrap_model(self.stepper.model)
        self.metrics_file = MetricsFile(folder / METRICS)
        self.metrics, self.best = {}, None
        self.train_seconds = self.wall_seconds = 0.0

    def complete(self, state: State | None) -> FitResult:
        """Train what is left after the state."""
        done = self._restore(state) if state else 0
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.metrics_file.cut(done)
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": done + 1}})
        shown, device = self.accelerator.is_main_process, self.accelerator.device
        self.progress = Progress(self.settings.epochs, self.task.examples, done, self.task.unit, device, shown)
        try:
            for epoch in range(done, self.settings.epochs):
                self._epoch(epoch)
        finally:
            self.progress.close()
            for tracker in self.accelerator.trackers:  # not end_training, which would end the processes' group too
                tracker.finish()
        return self._result()

    def _epoch(self, epoch: int) -> None:
        begun = time.monotonic()
        self._reseed(epoch)
        loss = self._train(epoch)
        trained = time.monotonic() - begun
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} in epoch {epoch + 1}; lower train.lr, or set train.max_grad_norm or "
                "another train.mixed_precision"
            )
        self.bare.eval()
        with torch.no_grad(), merged(self.bare):
            evaluated = self.task.evaluate(self.bare)
        self.train_seconds += trained
        speed = {f"{self.task.unit}_per_second": self.task.examples / trained}
        self.metrics = {"epoch": epoch + 1, "loss": loss, "lr": self.stepper.lr, **evaluated}
        self._select(evaluated)
        self._record(self.metrics | speed, begun)

    def _train(self, epoch: int) -> float:
        self.bare.train()
        self.progress.start_epoch(epoch)
        total = torch.zeros((), device=self.accelerator.device)
        for step, batch in enumerate(self.task.batches(epoch), start=epoch * self.steps):
            loss = self.stepper.step(step, batch, self.task.loss)
            total += loss * (len(batch) / self.task.examples)
            self.progress.advance(len(batch), loss)
        return self.accelerator.reduce(total, "sum").item()

    def _reseed(self, epoch: int) -> None:
        """Start all random streams of the epoch, so that a resumed run has nothing to remember of them."""
        key = (self.settings.seed, epoch, self.accelerator.process_index)
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _select(self, evaluated: dict[str, float]) -> None:
        if self.select_by and (self.best is None or evaluated[self.select_by] > self.best["value"]):
            parameters = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            self.best = {"value": evaluated[self.select_by], "metrics": self.metrics, "parameters": parameters}

    def _record(self, line: dict[str, float], begun: float) -> None:
        """The line before the checkpoint: a resumed run drops lines that are too many."""
        self.accelerator.log({key: value for key, value in line.items() if key != "epoch"}, step=line["epoch"])
        if self.accelerator.is_main_process:
            self.metrics_file.add(line)
        self.wall_seconds += time.monotonic() - begun
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, self._state())

    def _state(self) -> State:
        return State(
            fingerprint=self.fingerprint,
            epoch=self.metrics["epoch"],
            parameters={name: parameter.detach() for name, parameter in self.parameters.items()},
            stepper=self.stepper.state_dict(),
            best=self.best,
            metrics=self.metrics,
            train_seconds=self.train_seconds,
            wall_seconds=self.wall_seconds,
        )

    def _restore(self, state: State) -> int:
        self._assign(state.parameters)
        self.stepper.load_state_dict(state.stepper)
        self.best, self.metrics = state.best, state.metrics
        self.train_seconds, self.wall_seconds = state.train_seconds, state.wall_seconds
        return state.epoch

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _result(self) -> FitResult:
        if self.best:
            self._assign(self.best["parameters"])
        metrics = self.best["metrics"] if self.best else self.metrics
        speed = self.settings.epochs * self.task.examples / self.train_seconds
        self.bare.eval()
        return FitResult(metrics, metrics["epoch"], speed, self.wall_seconds)
