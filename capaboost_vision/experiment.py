"""A VTAB run from its configuration to its `result.json`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import resolve_model_data_config
from torch import nn

from capaboost_core.checkpoint import check_folder
from capaboost_core.errors import UserError
from capaboost_core.optimize import make_accelerator
from capaboost_core.results import Result, adapter_bytes, counts_of, device_name, write_result
from capaboost_core.run_config import to_dict
from capaboost_core.state import save_adapter
from capaboost_core.train import FitResult, fit
from capaboost_vision.image_task import VAL_ACCURACY, ImageTask, Normalize
from capaboost_vision.pretrained import check_model, create_model
from capaboost_vision.sources import ResizedImages, decode, num_classes, open_split
from capaboost_vision.vtab_run import DataSection, VtabRun

SPLIT_NOTES = {
    "tfds": "official VTAB-1k rows",
    "folder": "rows that the folder holds",
    "digits": "scikit-learn digits, 800/200/797 rows",
}
PROTOCOL_SPLITS = {"test": ("train800val200", "test"), "select": ("train800", "val200", "test")}


def run_experiment(run: VtabRun, folder: Path, resume: bool) -> dict[str, Any]:
    """Train, test once, and leave the adapter and the result in the folder.

    Everything that can be wrong with the input is found before the first file is written.

    Returns:
        The result, as `result.json` has it.

    Raises:
        UserError: If the configuration, the data, the weights or the folder do not permit the run, or
            its loss is no longer finite.
    """
    check_model(run.model)
    check_folder(folder, resume)
    accelerator = make_accelerator(run.train, folder)
    run = _with_precision(run, accelerator.mixed_precision)
    set_seed(run.train.seed)
    classes = run.data.num_classes or num_classes(run.data.dataset, run.data.source, run.data.dir)
    check_data(run.data, classes)
    model = create_model(run.model, classes, run.adapter)
    task = make_task(run, model, accelerator)
    selected = VAL_ACCURACY if run.data.protocol == "select" else None
    fitted = fit(accelerator, model, task, run.train, folder, to_dict(run), selected, resume)
    begun = time.monotonic()
    value = task.test(model)
    fitted = dataclasses.replace(fitted, wall_seconds=fitted.wall_seconds + time.monotonic() - begun)
    result = None
    if accelerator.is_main_process:
        save_adapter(model, folder / "adapter")
        result = make_result(run, model, fitted, value, folder, accelerator)
        write_result(folder, result)
    accelerator.end_training()
    return result.to_dict() if result else {}


def check_data(data: DataSection, classes: int) -> None:
    """Open every split of the protocol, before a model is made or loaded.

    Raises:
        UserError: If a split is missing or wrong, or has a label that the model has no class for.
    """
    for split in PROTOCOL_SPLITS[data.protocol]:
        largest = max(_open(data, split, (1, 1)).labels or [0])
        if largest >= classes:
            raise UserError(
                f"{data.dataset} {split} has label {largest}, but there are {classes} classes; "
                f"pass --set data.num_classes={largest + 1} or more"
            )


def make_task(run: VtabRun, model: nn.Module, accelerator: Accelerator) -> ImageTask:
    """Decode the splits to train and select on, and open the one to test on."""
    size = resolve_model_data_config(model)["input_size"][-2:]
    training, *selection, test = (
        (split, _open(run.data, split, size)) for split in PROTOCOL_SPLITS[run.data.protocol]
    )
    train = decode(training[1], training[0])
    val = decode(selection[0][1], selection[0][0]) if selection else None
    normalize = Normalize(run.data.normalize, model, accelerator.device)
    return ImageTask(accelerator, normalize, train, val, test[1], run.train.batch_size, run.train.seed)


def make_result(
    run: VtabRun, model: nn.Module, fitted: FitResult, value: float, folder: Path, accelerator: Accelerator
) -> Result:
    """Gather what the result file says."""
    return Result(
        task=run.data.dataset,
        method=run.method,
        model=run.model.name,
        seed=run.train.seed,
        protocol=run.data.protocol,
        metric="accuracy",
        value=value,
        **counts_of(model),
        epochs=run.train.epochs,
        selected_epoch=fitted.epoch,
        metrics=fitted.metrics,
        unit=ImageTask.unit,
        examples_per_second=fitted.examples_per_second,
        wall_seconds=fitted.wall_seconds,
        adapter_file_bytes=adapter_bytes(folder / "adapter"),
        split_note=SPLIT_NOTES[run.data.source],
        processes=accelerator.num_processes,
        device=device_name(accelerator.device),
        config=to_dict(run),
    )


def _with_precision(run: VtabRun, precision: str) -> VtabRun:
    """The run with the precision that the launcher chose where the config leaves it open."""
    return dataclasses.replace(run, train=dataclasses.replace(run.train, mixed_precision=precision))


def _open(data: DataSection, split: str, size: tuple[int, int]) -> ResizedImages:
    return open_split(data.dataset, data.source, data.dir, split, size)
