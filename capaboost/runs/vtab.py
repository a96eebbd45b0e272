"""A VTAB run: model and data from its settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import timm
import torch
from accelerate import Accelerator
from huggingface_hub import constants as hub
from timm.data.config import resolve_model_data_config
from torch import nn

from capaboost.console import remark
from capaboost.runs.settings import VisionDataSection, VisionModelSection, VtabRun
from capaboost.training.experiment import TaskSetup
from capaboost_core.errors import UserError, is_no_memory, reason_of
from capaboost_core.methods import Method
from capaboost_core.network import offline_unless_reachable
from capaboost_core.settings import hint
from capaboost_core.task import cached
from capaboost_vision.backbone import EMBEDDED
from capaboost_vision.timm_register import inject
from capaboost_vision.vtab.augment import Augment, AugmentedImageTask, decode_whole
from capaboost_vision.vtab.own import listed_once
from capaboost_vision.vtab.sources import ResizedImages, class_names, decode, num_classes, open_split
from capaboost_vision.vtab.task import ACCURACY, HELD_OUT_ACCURACY, VAL_ACCURACY, ImageTask, Normalize


def check_model(section: VisionModelSection) -> None:
    """Check what can be checked before a model is made.

    Raises:
        UserError: If timm has no such model or no such weights of it, or there is no such weights file.
    """
    name, _, tag = section.name.partition(".")
    if ":" not in section.name and not timm.is_model(name):
        advice = hint(name, timm.list_models(), otherwise="timm.list_models() lists the names")
        raise UserError(f"model.name: timm has no model {section.name!r}; {advice}")
    if tag and ":" not in section.name and not _has_tag(section.name):
        known = timm.list_pretrained(f"{name}.*") or [f"{name} with --set model.pretrained=false"]
        raise UserError(f"model.name: {name} has no pretrained weights {tag!r}; type {', '.join(known)}")
    if section.weights and not Path(section.weights).is_file():
        raise UserError(f"--weights {section.weights}: there is no such file")


def _has_tag(name: str) -> bool:
    try:
        return timm.models.get_pretrained_cfg(name) is not None
    except RuntimeError:  # what timm raises of an unknown one
        return False


def create_model(section: VisionModelSection, num_classes: int, adapter: Method) -> nn.Module:
    """The adapted model, as `create_base` and `inject` make it."""
    return inject(create_base(section, num_classes), adapter)


def create_base(section: VisionModelSection, num_classes: int) -> nn.Module:
    """The model with its weights and a fresh head.

    Raises:
        UserError: If weights cannot be had or belong to another architecture, or timm refuses the model.
    """
    arguments = dict(section.arguments(), num_classes=num_classes)
    if section.weights:
        return _from_file(section, arguments)
    return _from_timm(section, arguments) if section.pretrained else _create(section.name, False, arguments)


def _from_timm(section: VisionModelSection, arguments: dict[str, Any]) -> nn.Module:
    try:
        with _reach_hub(section.name):
            return _create(section.name, True, arguments)
    except Exception as error:  # hub clients fail in many ways
        if is_no_memory(error):
            raise
        _create(section.name, False, arguments)  # raises if timm cannot make the model at all
        if section.kwargs or section.img_size:
            advice = "leave model.kwargs and model.img_size out, or pass --set model.pretrained=false"
        else:
            other = "" if section.name.partition(".")[0] == EMBEDDED else f"or --model {EMBEDDED}, "
            advice = f"pass --weights FILE, {other}or --set model.pretrained=false"
        raise UserError(
            f"cannot load the pretrained weights of {section.name} ({reason_of(error)}); {advice}"
        ) from error


def _reach_hub(name: str) -> AbstractContextManager[None]:
    """Without a network the hub's client takes its cache, or fails at once; weights in a file need none."""
    cfg = timm.models.get_pretrained_cfg(name) if ":" not in name else None
    local = name.startswith("local-dir:") or (cfg and cfg.file)
    return nullcontext() if local else offline_unless_reachable(hub.ENDPOINT, hub)


def _from_file(section: VisionModelSection, arguments: dict[str, Any]) -> nn.Module:
    file = str(section.weights)
    overlay = dict(file=file, custom_load=file.endswith((".npz", ".npy")))
    seed = torch.initial_seed()
    torch.manual_seed(seed)
    try:
        model = _create(section.name, True, arguments | {"pretrained_cfg_overlay": overlay})
    except Exception as error:  # a foreign file may fail in any way
        if is_no_memory(error):
            raise
        _create(section.name, False, arguments)  # raises if timm cannot make the model at all
        raise UserError(f"--weights {file} does not fit {section.name}: {reason_of(error)}") from error
    lacking = _not_loaded(model, section.name, arguments, seed)
    if lacking:
        raise UserError(f"--weights {file} does not fit {section.name}: it lacks {lacking[0]}; name its --model")
    return model


def _not_loaded(model: nn.Module, name: str, arguments: dict[str, Any], seed: int) -> list[str]:
    """Random parameters that the file left at their initial values, which timm does not refuse."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initial = dict(_create(name, False, arguments).named_parameters())
    head = {id(parameter) for parameter in cast(Any, model).get_classifier().parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in head and parameter.numel() > 1 and parameter.std() > 0
        if torch.equal(parameter, initial[name])
    ]


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        # Of a name with a colon timm takes the architecture, too, from the hub or a folder.
        with _reach_hub(name) if ":" in name else nullcontext():
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # models check their arguments in many ways
        if pretrained or is_no_memory(error):
            raise
        extra = sorted(arguments.keys() - {"num_classes", "drop_path_rate"})
        given = f" with {', '.join(extra)}" if extra else ""
        advice = "correct model.img_size and model.kwargs" if extra else "choose another model"
        raise UserError(f"model.name: timm cannot make {name}{given} ({reason_of(error)}); {advice}") from error


SPLIT_NOTES = {
    "folder": "rows that the folder holds",
    "digits": "scikit-learn digits, 800/200/797 rows",
}
PROTOCOL_SPLITS = {"test": ("train800val200", "test"), "select": ("train800", "val200", "test")}


@listed_once()
def prepare(run: VtabRun, accelerator: Accelerator) -> TaskSetup:
    """Model and task of a run; nothing is written.

    Raises:
        UserError: If the model, the weights or the data do not permit the run.
    """
    check_model(run.model)
    data = run.data
    classes = data.num_classes or num_classes(data.dataset, data.source, data.dir)
    check_data(data, classes)
    model = create_model(run.model, classes, run.adapter)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        attend_by_products(model)
    task = make_task(run, model, accelerator)
    for line in task.test_set.remarks if accelerator.is_main_process else ():
        remark(f"{data.dir}: {line}")
    names = class_names(data.source, data.dir)
    task.classes = (*names, *map(str, range(len(names), classes)))
    turned = cached(("looked through", data, run.train.test), lambda: look_through(data, run.train.test))
    return TaskSetup(
        model=model,
        task=task,
        name=data.dataset,
        metric=ACCURACY,
        select_by=VAL_ACCURACY,
        split_note=(task.test_set.note or SPLIT_NOTES[data.source])
        + (f"; {turned} images turned upright as their EXIF says" if turned else ""),
        inference=inference_record(run, task, input_size(run, model)),
    )


MOST_PATCHES = 256  # whose products of queries and keys take little memory beside the rest of a block


def attend_by_products(model: nn.Module) -> None:
    """Compute attention as plain products instead of by PyTorch's fused kernel, where an image has few patches.

    The backward pass of that kernel is slow in bf16 on a CPU: a LoRA step takes 1.25 times as long with it at 197
    tokens, and 1.45 times at 16. Both compute the same function.
    """
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", MOST_PATCHES + 1)
    for module in model.modules():
        if patches <= MOST_PATCHES and isinstance(getattr(module, "fused_attn", None), bool):
            cast(Any, module).fused_attn = False


def look_through(data: VisionDataSection, test: bool) -> int:
    """Decode the images to test on, which are read again after training; how many images EXIF turns.

    Raises:
        UserError: If one cannot be read.
    """
    *training, tested = (_open(data, split, (1, 1)) for split in PROTOCOL_SPLITS[data.protocol])
    return sum(split.turned for split in training) + (tested.check() if test else 0)


def check_data(data: VisionDataSection, classes: int) -> None:
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


def make_task(run: VtabRun, model: nn.Module, accelerator: Accelerator) -> ImageTask:
    """Decode the splits to train and select on, and open the one to test on."""
    size = input_size(run, model)
    training, *selection, test = (
        (split, _open(run.data, split, size)) for split in PROTOCOL_SPLITS[run.data.protocol]
    )
    shown = [("test", test[1])] if run.data.source == "images" and not selection else []
    normalize = Normalize(run.data.normalize, model, accelerator.device)
    augment = Augment(run.data.augment, size, normalize.mean) if run.data.augment else None
    val = [_decoded(run.data, split, images, size) for split, images in (*selection, *shown)]
    rest = val[0] if val else None, test[1], run.train.batch_size, run.train.seed
    if augment:
        whole = _decoded(run.data, training[0], training[1], size, decode_whole)
        task = AugmentedImageTask(accelerator, normalize, whole, *rest, augment)
    else:
        task = ImageTask(accelerator, normalize, _decoded(run.data, *training, size), *rest)
    task.val_metric = HELD_OUT_ACCURACY if shown else VAL_ACCURACY
    return task


def input_size(run: VtabRun, model: nn.Module) -> tuple[int, int]:
    """(height, width) of the images: the run's setting, else the model's own."""
    if run.model.img_size:
        return run.model.img_size, run.model.img_size
    height, width = resolve_model_data_config(model)["input_size"][-2:]
    return height, width


def inference_record(run: VtabRun, task: ImageTask, size: tuple[int, int]) -> dict[str, Any]:
    """What a new process needs to use the adapter: base model, classes, and the transform of an image."""
    return {
        "kind": "images",
        "model": run.model.to_dict(),
        "classes": list(task.classes),
        "transform": {"size": list(size), "interpolation": "bicubic", **task.normalize.to_dict()},
    }


def _decoded(
    data: VisionDataSection, split: str, images: ResizedImages, size: tuple[int, int], how: Callable = decode
) -> Any:
    rows = data.dataset, data.source, data.dir, data.selection_rows, data.holdout, data.split_seed
    key = ("decoded", *rows, split, size, how)
    return cached(key, lambda: how(images, split))


def _open(data: VisionDataSection, split: str, size: tuple[int, int]) -> ResizedImages:
    return open_split(
        data.dataset, data.source, data.dir, split, size, data.selection_rows, data.holdout, data.split_seed
    )
