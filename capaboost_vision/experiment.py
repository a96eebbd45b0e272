"""A VTAB run: model and data from its settings."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.training.experiment import DataSection, RunSettings, TaskSetup
from capaboost_core.training.shared import once
from capaboost_vision.image_task import ACCURACY, HELD_OUT_ACCURACY, VAL_ACCURACY, ImageTask, Normalize
from capaboost_vision.pretrained import check_model, create_model
from capaboost_vision.sources import ResizedImages, class_names, decode, num_classes, open_split
from capaboost_vision.sources.own import listed_once

SPLIT_NOTES = {
    "folder": "rows that the folder holds",
    "digits": "scikit-learn digits, 800/200/797 rows",
}
PROTOCOL_SPLITS = {"test": ("train800val200", "test"), "select": ("train800", "val200", "test")}


@listed_once()
def prepare(run: RunSettings, accelerator: Accelerator) -> TaskSetup:
    """Model and task of a run; nothing is written.

    Raises:
        UserError: If the model, the weights or the data do not permit the run.
    """
    check_model(run.model)
    data = run.data
    classes = data.num_classes or num_classes(data.dataset, data.source, data.dir)
    check_data(data, classes)
    model = create_model(run.model, classes, run.adapter)
    task = make_task(run, model, accelerator)
    for remark in task.test_set.remarks:
        accelerator.print(f"{data.dir}: {remark}")
    names = class_names(data.source, data.dir)
    task.classes = (*names, *map(str, range(len(names), classes)))
    turned = once(("looked through", data, run.train.test), lambda: look_through(data, run.train.test))
    return TaskSetup(
        model=model,
        task=task,
        name=data.dataset,
        metric=ACCURACY,
        select_by=VAL_ACCURACY,
        split_note=(task.test_set.note or SPLIT_NOTES[data.source])
        + (f"; {turned} images turned upright as their EXIF says" if turned else ""),
        inference=inference_record(run, task),
    )


def look_through(data: DataSection, test: bool) -> int:
    """Decode the images to test on, which are read again after training; how many images EXIF turns.

    Raises:
        UserError: If one cannot be read.
    """
    *training, tested = (_open(data, split, (1, 1)) for split in PROTOCOL_SPLITS[data.protocol])
    return sum(split.turned for split in training) + (tested.check() if test else 0)


def check_data(data: DataSection, classes: int) -> None:
    """Open every split of the protocol, before a model is made or loaded.

    Raises:
        UserError: If a split is missing or wrong, has a label that the model has no class for, or has only one
            class to train on.
    """
    for split in PROTOCOL_SPLITS[data.protocol]:
        labels = _open(data, split, (1, 1)).labels or range(2)
        if split.startswith("train") and len(set(labels)) < 2:
            raise UserError(f"{data.dataset} {split} has images of one class only; list images of two or more")
        largest = max(labels)
        if largest >= classes:
            raise UserError(
                f"{data.dataset} {split} has label {largest}, but there are {classes} classes; "
                f"pass --set data.num_classes={largest + 1} or more"
            )


def make_task(run: RunSettings, model: nn.Module, accelerator: Accelerator) -> ImageTask:
    """Decode the splits to train and select on, and open the one to test on."""
    own = resolve_model_data_config(model)["input_size"][-2:]
    size = (run.model.img_size,) * 2 if run.model.img_size else own
    training, *selection, test = (
        (split, _open(run.data, split, size)) for split in PROTOCOL_SPLITS[run.data.protocol]
    )
    shown = [("test", test[1])] if run.data.source == "images" and not selection else []
    train, *val = (_decoded(run.data, split, images, size) for split, images in (training, *selection, *shown))
    normalize = Normalize(run.data.normalize, model, accelerator.device)
    task = ImageTask(
        accelerator, normalize, train, val[0] if val else None, test[1], run.train.batch_size, run.train.seed
    )
    task.val_metric = HELD_OUT_ACCURACY if shown else VAL_ACCURACY
    return task


def inference_record(run: RunSettings, task: ImageTask) -> dict[str, Any]:
    """What a new process needs to use the adapter: base model, classes, and the transform of an image."""
    return {
        "kind": "images",
        "model": run.model.to_dict(),
        "classes": list(task.classes),
        "transform": {"size": list(task.images.shape[-2:]), "interpolation": "bicubic", **task.normalize.to_dict()},
    }


def _decoded(data: DataSection, split: str, images: ResizedImages, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    rows = data.dataset, data.source, data.dir, data.selection_rows, data.holdout, data.split_seed
    key = ("decoded", *rows, split, size)
    return once(key, lambda: decode(images, split))


def _open(data: DataSection, split: str, size: tuple[int, int]) -> ResizedImages:
    return open_split(
        data.dataset, data.source, data.dir, split, size, data.selection_rows, data.holdout, data.split_seed
    )
