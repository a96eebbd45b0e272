"""The loop: epochs of steps, each followed by metrics, a checkpoint, and the answer to signals.

Nothing in an epoch makes the host wait for the device.
"""

from __future__ import annotations

import time
from signal import Signals

import torch
from torch import Tensor

from capaboost_core.modes import merged
from capaboost_core.training.position import Position, here, start_streams
from capaboost_core.training.progress import Progress
from capaboost_core.training.record import Record
from capaboost_core.training.run_state import RunState
from capaboost_core.training.stopping import SAVE, Stopped, Watch
from capaboost_core.training.task import Task


class Loop:
    """Trains a state on a task, and records it."""

    def __init__(self, task: Task, state: RunState, record: Record):
        self.task, self.state, self.record, self.stepper = task, state, record, state.stepper
        self.accelerator, self.settings, self.steps = state.accelerator, state.settings, state.steps
        self.bare = self.accelerator.unwrap_model(self.stepper.model)

    def run(self, done: int, position: Position | None) -> None:
        """Train what is left after the finished epochs and a position in the next."""
        self.record.start(done, self.state.metrics)
        seen = done * self.task.examples
        seen += sum(map(len, self.task.batches(done)[: position.step])) if position else 0
        shown, device = self.accelerator.is_main_process, self.accelerator.device
        self.progress = Progress(self.settings.epochs, self.task.examples, seen, self.task.unit, device, shown)
        self.state.since = time.monotonic()
        try:
            with Watch(self.accelerator.num_processes) as self.watch:
                for epoch in range(done, self.settings.epochs):
                    self._epoch(epoch, position if epoch == done else None)
        finally:
            self.progress.close()
            self.record.close()
        self.bare.eval()

    def _epoch(self, epoch: int, position: Position | None) -> None:
        loss, trained = self._train(epoch, position)
        self.state.check_finite(loss, epoch)
        self.bare.eval()
        with torch.no_grad(), merged(self.bare):
            evaluated = self.task.evaluate(self.bare)
        self.progress.evaluated(evaluated)
        self.state.train_seconds += trained
        self.state.end_epoch({"epoch": epoch + 1, "loss": loss, "lr": self.stepper.lr, **evaluated})
        speed = {f"{self.task.unit}_per_second": self.task.examples / trained}
        self.record.line(self.state.metrics | speed)
        self.record.save(self.state.snapshot(epoch + 1))
        order = self.watch.order()
        if order > SAVE:
            raise self._stopped(order, f"after epoch {epoch + 1}")

    def _train(self, epoch: int, position: Position | None) -> tuple[float, float]:
        """The epoch's mean loss, and the seconds that its steps took."""
        self.bare.train()
        start_streams(self.settings.seed, epoch, self.accelerator.process_index)
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
        self.state.check_finite(float(sum(process["loss"] for process in position.processes)), epoch)
        self.record.save(self.state.snapshot(epoch, position))
        self.accelerator.wait_for_everyone()  # a process that ends makes the launcher end the others
        self.watch.saved = time.monotonic()
        if order > SAVE:
            raise self._stopped(order, f"in epoch {epoch + 1}, after step {step} of {self.steps}")

    def _stopped(self, order: int, place: str) -> Stopped:
        name = Signals(order).name
        return Stopped(
            order, f"stopped by {name} {place}; the same command with --resume goes on from {self.record.folder}"
        )
