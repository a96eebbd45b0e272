"""The training loop of every task: epochs, metrics, checkpoints, resuming, selection.

Nothing in an epoch makes the host wait for the device.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from capaboost_core.errors import DivergedError
from capaboost_core.inject import trainable_parameters
from capaboost_core.modes import merged
from capaboost_core.training.checkpoint import State, differences
from capaboost_core.training.checkpoint_check import Expected
from capaboost_core.training.optimize import Stepper
from capaboost_core.training.position import Position, here
from capaboost_core.training.processes import on_main
from capaboost_core.training.progress import Progress
from capaboost_core.training.provenance import surroundings
from capaboost_core.training.record import Record
from capaboost_core.training.run_folder import check_folder, check_space
from capaboost_core.training.stopping import SAVE, Stopped, Watch
from capaboost_core.training.task import Task
from capaboost_core.training.train_section import TrainSection

# In sizes of the trained parameters: each checkpoint holds them, two moments, and the best epoch's; the adapter once.
CHECKPOINTS_AND_ADAPTER, SMALL_FILES = 9, 300_000


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

    After each epoch the folder has a line more in `metrics.jsonl` and an atomic checkpoint. SIGTERM and SIGINT
    finish the step, and save.

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
        UserError: If the folder holds another run, its disk is too small, or training diverges.
        Stopped: After a signal; the run is saved.
    """
    check_folder(folder, resume)
    fingerprint = fingerprint | {"processes": accelerator.num_processes, "examples": task.examples}
    if hasattr(task, "fingerprint"):
        fingerprint["training rows and labels"] = task.fingerprint()
    run = _Run(accelerator, model, task, settings, folder, fingerprint, select_by)
    state = run.load() if resume else None
    accelerator.wait_for_everyone()  # no process writes before all have checked
    return run.complete(state)


class _Run:
    def __init__(self, accelerator, model, task, settings, folder, fingerprint, select_by):
        self.accelerator, self.task, self.settings, self.folder = accelerator, task, settings, folder
        self.fingerprint, self.select_by = fingerprint, select_by
        self.surroundings = surroundings(accelerator.device)
        self.parameters = trainable_parameters(model)
        size = sum(parameter.nbytes for parameter in self.parameters.values())
        on_main(lambda: check_space(folder, CHECKPOINTS_AND_ADAPTER * size + SMALL_FILES))
        self.steps = len(task.batches(0))
        self.stepper = Stepper(accelerator, model, list(self.parameters.values()), settings, self.steps)
        self.bare = accelerator.unwrap_model(self.stepper.model)
        self.record = Record(accelerator, folder)
        self.metrics, self.best = {}, None
        self.train_seconds = self.wall_seconds = 0.0

    def load(self) -> State | None:
        """The state to go on from, told in one line."""
        processes, selects = self.accelerator.num_processes, self.select_by is not None
        expected = Expected(
            self.settings.epochs, self.steps, processes, selects, self.parameters, self.stepper.optimizer
        )
        state, warning = self.record.checkpoints.load(self.fingerprint, expected.problem_of)
        if warning:
            self.accelerator.print(f"warning: {warning}")
        if state is None:
            self.accelerator.print(f"{self.folder}: no checkpoint yet, starting from the beginning")
            return None
        step = f", step {state.position['step']} of {self.steps}" if state.position else ""
        self.accelerator.print(f"{self.folder}: going on after epoch {state.epoch}{step}")
        changed = differences(state.surroundings, self.surroundings)
        if changed:
            self.accelerator.print(f"note: not bit-identical to a run without a stop ({'; '.join(changed)})")
        return state

    def complete(self, state: State | None) -> FitResult:
        """Train what is left after the state."""
        done, position = self._restore(state) if state else (0, None)
        self.record.start(done, self.metrics)
        seen = done * self.task.examples + self._examples(done, position)
        shown, device = self.accelerator.is_main_process, self.accelerator.device
        self.progress = Progress(self.settings.epochs, self.task.examples, seen, self.task.unit, device, shown)
        self.since = time.monotonic()
        try:
            with Watch(self.accelerator.num_processes) as self.watch:
                for epoch in range(done, self.settings.epochs):
                    self._epoch(epoch, position if epoch == done else None)
        finally:
            self.progress.close()
            self.record.close()
        return self._result()

    def _epoch(self, epoch: int, position: Position | None) -> None:
        loss, trained = self._train(epoch, position)
        self._check_finite(loss, epoch)
        self.bare.eval()
        with torch.no_grad(), merged(self.bare):
            evaluated = self.task.evaluate(self.bare)
        self.train_seconds += trained
        speed = {f"{self.task.unit}_per_second": self.task.examples / trained}
        self.metrics = {"epoch": epoch + 1, "loss": loss, "lr": self.stepper.lr, **evaluated}
        self._select(evaluated)
        self.record.line(self.metrics | speed)
        self.record.save(self._state(epoch + 1))
        order = self.watch.order()
        if order > SAVE:
            raise self._stopped(order, f"after epoch {epoch + 1}")

    def _train(self, epoch: int, position: Position | None) -> tuple[float, float]:
        """The epoch's mean loss, and the seconds that its steps took."""
        self.bare.train()
        self._reseed(epoch)
        total, done, begun = torch.zeros((), device=self.accelerator.device), 0, time.monotonic()
        if position:
            total = position.restore(self.accelerator.process_index, self.accelerator.device)
            done, begun = position.step, begun - position.seconds
        self.progress.start_epoch(epoch)
        for step, batch in enumerate(self.task.batches(epoch)[done:], start=done):
            loss = self.stepper.step(epoch * self.steps + step, batch, self.task.loss)
            total += loss * (len(batch) / self.task.examples)
            self.progress.advance(len(batch), loss)
            order = self.watch.order()
            if order:
                self._save_within(epoch, step + 1, time.monotonic() - begun, total, order)
        loss = self.accelerator.reduce(total, "sum").item()
        return loss, time.monotonic() - begun

    def _save_within(self, epoch: int, step: int, seconds: float, total: Tensor, order: int) -> None:
        """Save the place in the epoch; where a signal ordered it, the run ends there."""
        position = Position(step, seconds, self.watch.gather(here(total)))
        self._check_finite(float(sum(process["loss"] for process in position.processes)), epoch)
        self.record.save(self._state(epoch, position))
        self.accelerator.wait_for_everyone()  # a process that ends makes the launcher end the others
        self.watch.saved = time.monotonic()
        if order > SAVE:
            raise self._stopped(order, f"in epoch {epoch + 1}, after step {step} of {self.steps}")

    def _stopped(self, order: int, place: str) -> Stopped:
        name = Signals(order).name
        return Stopped(order, f"stopped by {name} {place}; the same command with --resume goes on from {self.folder}")

    def _check_finite(self, loss: float, epoch: int) -> None:
        finite = torch.stack([parameter.isfinite().all() for parameter in self.parameters.values()]).all()
        if math.isfinite(loss) and finite:
            return
        what = "a trained parameter is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        raise DivergedError(
            f"{what} in epoch {epoch + 1}; lower train.lr, or set train.max_grad_norm or another train.mixed_precision"
        )

    def _reseed(self, epoch: int) -> None:
        """Start all random streams of the epoch, so that a run resumed after an epoch remembers nothing of them."""
        key = (self.settings.seed, epoch, self.accelerator.process_index)
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _examples(self, epoch: int, position: Position | None) -> int:
        return sum(map(len, self.task.batches(epoch)[: position.step])) if position else 0

    def _select(self, evaluated: dict[str, float]) -> None:
        """Keep the first best epoch; a metric that is not a number is worse than any."""
        if not self.select_by:
            return
        value = float(evaluated[self.select_by])
        if self.best is None or value > self.best["value"] or math.isnan(self.best["value"]) > math.isnan(value):
            parameters = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            self.best = {"value": value, "metrics": self.metrics, "parameters": parameters}

    def _state(self, epoch: int, position: Position | None = None) -> State:
        now = time.monotonic()
        self.wall_seconds, self.since = self.wall_seconds + now - self.since, now
        return State(
            fingerprint=self.fingerprint,
            surroundings=self.surroundings,
            epoch=epoch,
            position=asdict(position) if position else None,
            parameters={name: parameter.detach() for name, parameter in self.parameters.items()},
            stepper=self.stepper.state_dict(),
            best=self.best,
            metrics=self.metrics,
            train_seconds=self.train_seconds,
            wall_seconds=self.wall_seconds,
        )

    def _restore(self, state: State) -> tuple[int, Position | None]:
        self._assign(state.parameters)
        self.stepper.load_state_dict(state.stepper)
        self.best, self.metrics = state.best, state.metrics
        self.train_seconds, self.wall_seconds = state.train_seconds, state.wall_seconds
        return state.epoch, Position(**state.position) if state.position else None

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
