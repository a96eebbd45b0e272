"""Training of any model on any task: epochs of steps, each followed by metrics and a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from capaboost.training.checkpoint import Position, capture_rng, start_streams
from capaboost.training.processes import on_main
from capaboost.training.result import Progress, Record
from capaboost.training.run_folder import check_folder, check_space
from capaboost.training.run_state import RunState
from capaboost.training.settings import TrainSection, flat
from capaboost.training.sharded import evaluating
from capaboost_core.account import changing
from capaboost_core.errors import Stopped, UserError, is_no_memory, reason_of
from capaboost_core.task import Task

# After SIGTERM or SIGINT a run finishes its step, saves and ends, all its processes at the same step.


SAVE = 1  # below every signal that is caught
SAVE_SECONDS = 600.0
BURST_SECONDS = 1.0  # a launcher repeats a signal that the terminal has sent to all processes already
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalGuard:
    """Notes signals while it is open; the loop calls `poll` after each step.

    A second signal, a second or more after the first, stops at once.

    Args:
        processes: The number of the run's processes; several agree over the host, so that none waits for a device.
    """

    def __init__(self, processes: int):
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if processes > 1 else None
        self.number, self.noted, self.saved = 0, 0.0, time.monotonic()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self.noted = number, now
        elif now - self.noted > BURST_SECONDS:
            raise Stopped(number)

    def poll(self) -> int:
        """What every process does next: 0 is to go on, SAVE to save, another number to end by that signal.

        Without a signal, a save is due every ten minutes.
        """
        late = time.monotonic() - self.saved > SAVE_SECONDS
        wish = self.number or (SAVE if late else 0)
        if self.group is None:
            return wish
        agreed = torch.tensor(wish)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.group)
        return int(agreed)

    def gather(self, mine: Any) -> list[Any]:
        """Every process's object, in the order of the processes."""
        if self.group is None:
            return [mine]
        every: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(every, mine, group=self.group)
        return every


# In sizes of the trained parameters: each checkpoint holds them, two moments, and the best epoch's; the adapter once.
CHECKPOINTS_AND_ADAPTER, SMALL_FILES = 9, 300_000
TRIAL_ROWS = 2


class Loop:
    """Trains a state on a task, and records it; nothing within an epoch makes the host wait for the device."""

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
            with SignalGuard(self.accelerator.num_processes) as self.watch:
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
        with torch.no_grad(), evaluating(self.accelerator, self.bare):
            evaluated = self.task.evaluate(self.bare)
        self.progress.evaluated(evaluated)
        self.state.train_seconds += trained
        self.state.end_epoch({"epoch": epoch + 1, "loss": loss, "lr": self.stepper.lr, **evaluated})
        speed = {f"{self.task.unit}_per_second": self.task.examples / trained}
        self.record.line(self.state.metrics | speed)
        self.record.save(self.state.snapshot(epoch + 1))
        wish = self.watch.poll()
        if wish > SAVE:
            raise self._stopped(wish, f"after epoch {epoch + 1}")

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
            wish = self.watch.poll()
            if wish:
                self._save_within(epoch, step + 1, time.monotonic() - begun, total, wish)
        loss = cast(Tensor, self.accelerator.reduce(total, "sum"))
        return loss.item(), time.monotonic() - begun

    def _save_within(self, epoch: int, step: int, seconds: float, total: Tensor, wish: int) -> None:
        """Save in the middle of an epoch; where a signal asked for it, the run ends there."""
        position = Position(step, seconds, self.watch.gather(capture_rng(total)))
        self.state.check_finite(float(sum(process["loss"] for process in position.processes)), epoch)
        self.record.save(self.state.snapshot(epoch, position))
        self.accelerator.wait_for_everyone()  # a process that ends makes the launcher end the others
        self.watch.saved = time.monotonic()
        if wish > SAVE:
            raise self._stopped(wish, f"in epoch {epoch + 1}, after step {step} of {self.steps}")

    def _stopped(self, number: int, where: str) -> Stopped:
        name = Signals(number).name
        return Stopped(
            number, f"stopped by {name} {where}; the same command with --resume goes on from {self.record.folder}"
        )


@dataclass(frozen=True)
class FitResult:
    """How a run went; times are summed over interruptions.

    Attributes:
        metrics: The last epoch's line of `metrics.jsonl`, or the selected epoch's metrics.
        epoch: The epoch, from 1, whose weights the model has now.
        data_hash: The task's fingerprint, if it has one.
        weights_hash: Of the pretrained weights.
    """

    metrics: dict[str, float]
    epoch: int
    examples_per_second: float
    wall_seconds: float
    data_hash: str | None = None
    weights_hash: str | None = None


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
        fingerprint: The configuration; a resumed run must have the same.
        select_by: Metric of `task.evaluate` whose first best epoch gives the final weights; without it
            they are the last epoch's.
        resume: Continue from the folder's checkpoint; the result is bit-identical to that of an uninterrupted run.

    Raises:
        UserError: If the folder holds another run, its disk is too small, or training diverges.
        Stopped: After a signal; the run is saved.
    """
    check_folder(folder, resume)
    size = sum(tensor.nbytes for tensor in changing(model).values())
    on_main(lambda: check_space(folder, CHECKPOINTS_AND_ADAPTER * size + SMALL_FILES))
    fingerprint = fingerprint | {"processes": accelerator.num_processes, "examples": task.examples}
    fingerprint_of_task = getattr(task, "fingerprint", None)
    data_hash = fingerprint_of_task() if fingerprint_of_task else None
    if data_hash:
        fingerprint["training rows and labels"] = data_hash
    state = RunState(accelerator, model, settings, len(task.batches(0)), fingerprint, select_by)
    record = Record(accelerator, folder, flat(fingerprint))
    done, position = state.load(record.checkpoints) if resume else (0, None)
    try_out(state, task)
    accelerator.wait_for_everyone()  # no process writes before all have checked
    Loop(task, state, record).run(done, position)
    metrics = state.finish()
    speed = settings.epochs * task.examples / state.train_seconds
    return FitResult(metrics, int(metrics["epoch"]), speed, state.wall_seconds, data_hash, state.base_hash)


def _trial_pass(state: RunState, task: Task, model: nn.Module) -> None:
    trial = getattr(task, "trial", None)
    loss = trial(model) if trial else task.loss(model, task.batches(0)[0][:TRIAL_ROWS])
    trained = [parameter for parameter in state.stepper.parameters if parameter.requires_grad]
    if state.accelerator.is_fsdp2:
        loss.backward()  # sharded parameters have no gradients of their own in the graph
        state.stepper.optimizer.zero_grad()
    elif trained and loss.requires_grad:
        torch.autograd.grad(loss, trained, allow_unused=True)


def try_out(state: RunState, task: Task) -> None:
    """One forward and one backward pass of a few rows, which change nothing.

    It finds a model that cannot read the data before the first step, and not in the last batch of a run.

    Raises:
        UserError: If the model fails on these rows.
    """
    model = state.accelerator.unwrap_model(state.stepper.model)
    was_training = model.training
    model.eval()  # without dropout, which would draw random numbers, and with running statistics that stay
    try:
        _trial_pass(state, task, model)
    except Exception as error:  # models fail in many ways on what they do not expect
        if isinstance(error, UserError) or is_no_memory(error):
            raise
        advice = "correct the sections model and data, which have to fit each other"
        if state.accelerator.is_fsdp2:  # which cannot shard parameters that several blocks share
            advice = "train it without FSDP2, or correct the sections model and data"
        raise UserError(f"the model cannot be trained on this data: {reason_of(error)}; {advice}") from error
    finally:
        model.train(was_training)
