"""Training of any model on any task, from its folder's check to the weights that it ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from capaboost_core.account import changing
from capaboost_core.errors import UserError, is_no_memory, reason_of
from capaboost_core.training.loop import Loop
from capaboost_core.training.processes import on_main
from capaboost_core.training.record import Record
from capaboost_core.training.run_folder import check_folder, check_space
from capaboost_core.training.run_state import RunState
from capaboost_core.training.task import Task
from capaboost_core.training.train_section import TrainSection

# In sizes of the trained parameters: each checkpoint holds them, two moments, and the best epoch's; the adapter once.
CHECKPOINTS_AND_ADAPTER, SMALL_FILES = 9, 300_000
TRIAL_ROWS = 2


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
    data_hash = task.fingerprint() if hasattr(task, "fingerprint") else None
    if data_hash:
        fingerprint["training rows and labels"] = data_hash
    state = RunState(accelerator, model, settings, len(task.batches(0)), fingerprint, select_by)
    record = Record(accelerator, folder)
    done, position = state.load(record.checkpoints) if resume else (0, None)
    try_out(state, task)
    accelerator.wait_for_everyone()  # no process writes before all have checked
    Loop(task, state, record).run(done, position)
    metrics = state.finish()
    speed = settings.epochs * task.examples / state.train_seconds
    return FitResult(metrics, metrics["epoch"], speed, state.wall_seconds, data_hash, state.base_hash)


def try_out(state: RunState, task: Task) -> None:
    """One forward and one backward pass of a few rows, of which nothing remains.

    So a model that cannot read the data is found before the first step, and not in the last batch of a run.

    Raises:
        UserError: If the model fails on these rows.
    """
    model = state.accelerator.unwrap_model(state.stepper.model)
    was_training = model.training
    model.eval()  # without dropout, which would draw random numbers, and with running statistics that stay
    try:
        loss = task.trial(model) if hasattr(task, "trial") else task.loss(model, task.batches(0)[0][:TRIAL_ROWS])
        trained = [parameter for parameter in state.stepper.parameters if parameter.requires_grad]
        if trained and loss.requires_grad:
            torch.autograd.grad(loss, trained, allow_unused=True)
    except Exception as error:  # models fail in many ways on what they do not expect
        if isinstance(error, UserError) or is_no_memory(error):
            raise
        raise UserError(
            f"the model cannot be trained on this data: {reason_of(error)}; correct the sections model and data, "
            "which have to fit each other"
        ) from error
    finally:
        model.train(was_training)
