"""A run from its configuration to its `result.json`, for any task."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from capaboost.training.checkpoint import check_fingerprint
from capaboost.training.loop import FitResult, fit
from capaboost.training.optimize import described, make_accelerator
from capaboost.training.result import (
    Result,
    adapter_bytes,
    command_line,
    counts_of,
    device_name,
    read_result,
    write_result,
)
from capaboost.training.run_folder import ADAPTER, RESULT, check_folder, claim, is_finished
from capaboost.training.settings import TrainSection, to_dict
from capaboost.training.sharded import evaluating
from capaboost_core.adapter_files.record import write_inference
from capaboost_core.adapter_files.save import save_adapter
from capaboost_core.errors import UserError
from capaboost_core.methods import Method
from capaboost_core.task import Task


class ModelSection(Protocol):
    """The frozen model; an integration adds its own fields."""

    @property
    def name(self) -> str: ...


class DataSection(Protocol):
    """The data; an integration adds its own fields."""

    @property
    def protocol(self) -> str: ...


class RunSettings(Protocol):
    """All settings of a run: a frozen dataclass of sections.

    Attributes:
        selecting: The protocol that selects an epoch, on rows that are not tested on.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def model(self) -> ModelSection: ...
    @property
    def data(self) -> DataSection: ...
    @property
    def train(self) -> TrainSection: ...
    @property
    def adapter(self) -> Method: ...
    @property
    def selecting(self) -> str: ...


AnyRun = TypeVar("AnyRun", bound=RunSettings)


@dataclass(frozen=True)
class TaskSetup:
    """What an integration builds from a run's settings.

    Attributes:
        model: Adapted, with a head for the task.
        name: What the task is called in the result.
        metric: The one of the task's test metrics that counts.
        select_by: The metric of `task.evaluate` that selects the epoch, where the protocol selects one.
        split_note: Which rows the splits hold.
        inference: What a new process needs to use the adapter, as `inference.json` beside it has it.
    """

    model: nn.Module
    task: Task
    name: str
    metric: str
    select_by: str
    split_note: str
    inference: dict[str, Any] | None = None


Prepare = Callable[[AnyRun, Accelerator], TaskSetup]


def run_experiment(
    run: AnyRun, folder: Path, resume: bool, prepare: Prepare[AnyRun], command: str | None = None
) -> dict[str, Any]:
    """Train, test once, and leave the adapter and the result in the folder.

    All input is checked before the first file is written. A run holds its folder's lock while it lives.

    Args:
        run: All settings.
        folder: Where the run lives.
        resume: Continue from the folder's checkpoint; a finished run returns its stored result unchanged.
        prepare: Makes the model and the task; writes nothing.
        command: What the result says was typed; by default the command line of this process.

    Returns:
        The result, as `result.json` has it; empty in all processes but the first.

    Raises:
        UserError: If the configuration, the data, the weights or the folder do not permit the run, or
            its loss is no longer finite.
    """
    check_folder(folder, resume)
    if not run.train.test and run.data.protocol != run.selecting:
        protocol = run.data.protocol
        raise UserError(f"train.test=false leaves protocol {protocol} no value; pass --protocol {run.selecting}")
    accelerator = make_accelerator(run.train, folder)
    # The result and the checkpoint hold what `auto` became.
    train = run.train.replace(mixed_precision=accelerator.mixed_precision)
    run = dataclasses.replace(run, train=train)
    if is_finished(folder):
        return stored_result(run, folder) if accelerator.is_main_process else {}
    accelerator.print(described(accelerator.mixed_precision, accelerator.device))
    with claim(folder):
        return _train_and_test(run, folder, resume, prepare, accelerator, command or command_line())


def stored_result(run: RunSettings, folder: Path) -> dict[str, Any]:
    """The stored result of a finished run.

    Raises:
        UserError: If it cannot be read, or belongs to other settings.
    """
    result = read_result(folder / RESULT)
    check_fingerprint(folder, result["config"], to_dict(run))
    print(f"{folder}: finished already; its result stands")
    return result


def _train_and_test(
    run: AnyRun, folder: Path, resume: bool, prepare: Prepare[AnyRun], accelerator: Accelerator, command: str
) -> dict[str, Any]:
    set_seed(run.train.seed)
    setup = prepare(run, accelerator)
    selected = setup.select_by if run.data.protocol == run.selecting else None
    if not run.train.test:
        setup = dataclasses.replace(setup, metric=setup.select_by, split_note=f"{setup.split_note}; not tested")
    fitted = fit(accelerator, setup.model, setup.task, run.train, folder, to_dict(run), selected, resume)
    begun = time.monotonic()
    with evaluating(accelerator, setup.model):
        tested = setup.task.test(setup.model) if run.train.test else {setup.metric: fitted.metrics[setup.metric]}
    fitted = dataclasses.replace(fitted, wall_seconds=fitted.wall_seconds + time.monotonic() - begun)
    if accelerator.is_main_process or accelerator.is_fsdp2:  # where every process has a part, all gather, one writes
        save_adapter(setup.model, folder / ADAPTER)
    if not accelerator.is_main_process:
        return {}
    if setup.inference is not None:
        write_inference(folder / ADAPTER, setup.inference)
    write_report = getattr(setup.task, "write_report", None)
    if run.train.test and write_report:
        write_report(folder)
    result = make_result(run, setup, selected, fitted, tested, folder, accelerator, command)
    write_result(folder, result.to_dict())
    return result.to_dict()


def make_result(
    run: RunSettings,
    setup: TaskSetup,
    selected: str | None,
    fitted: FitResult,
    tested: dict[str, float],
    folder: Path,
    accelerator: Accelerator,
    command: str,
) -> Result:
    """Gather the fields of the result file."""
    return Result(
        task=setup.name,
        method=run.adapter.label,
        model=run.model.name,
        seed=run.train.seed,
        protocol=run.data.protocol,
        metric=setup.metric,
        value=tested[setup.metric],
        **counts_of(setup.model),
        epochs=run.train.epochs,
        selected_epoch=fitted.epoch,
        selected_by=selected,
        metrics=fitted.metrics,
        test_metrics=tested,
        unit=setup.task.unit,
        examples_per_second=fitted.examples_per_second,
        wall_seconds=fitted.wall_seconds,
        adapter_file_bytes=adapter_bytes(folder / ADAPTER),
        split_note=setup.split_note,
        processes=accelerator.num_processes,
        device=device_name(accelerator.device),
        data_hash=fitted.data_hash,
        weights_hash=fitted.weights_hash,
        config=to_dict(run),
        command=command,
    )
