"""Create a timm model with its pretrained weights, or say in a line why there are none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from huggingface_hub import constants as hub
from torch import nn

from capaboost_core.errors import UserError, is_no_memory, reason_of
from capaboost_core.methods import Method
from capaboost_core.network import offline_unless_reachable
from capaboost_core.settings.base import hint
from capaboost_vision.backbone import EMBEDDED
from capaboost_vision.timm_register import inject

if TYPE_CHECKING:
    from capaboost_core.training.experiment import ModelSection


def check_model(section: ModelSection) -> None:
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


def create_model(section: ModelSection, num_classes: int, adapter: Method) -> nn.Module:
    """The adapted model, as `create_base` and `inject` make it."""
    return inject(create_base(section, num_classes), adapter)


def create_base(section: ModelSection, num_classes: int) -> nn.Module:
    """The model with its weights and a fresh head.

    Raises:
        UserError: If weights cannot be had or belong to another architecture, or timm refuses the model.
    """
    arguments = dict(section.arguments(), num_classes=num_classes)
    if section.weights:
        return _from_file(section, arguments)
    return _from_timm(section, arguments) if section.pretrained else _create(section.name, False, arguments)


def _from_timm(section: ModelSection, arguments: dict[str, Any]) -> nn.Module:
    try:
        with _reach_hub(section.name):
            return _create(section.name, True, arguments)
    except Exception as error:  # hub clients fail in many ways
        if is_no_memory(error):
            raise
        _create(section.name, False, arguments)  # if timm cannot make the model at all, that is the mistake
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


def _from_file(section: ModelSection, arguments: dict[str, Any]) -> nn.Module:
    file = section.weights
    overlay = dict(file=file, custom_load=file.endswith((".npz", ".npy")))
    seed = torch.initial_seed()
    torch.manual_seed(seed)
    try:
        model = _create(section.name, True, arguments | {"pretrained_cfg_overlay": overlay})
    except Exception as error:  # a foreign file may fail in any way
        if is_no_memory(error):
            raise
        _create(section.name, False, arguments)  # if timm cannot make the model at all, that is the mistake
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
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
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
        place = f" with {', '.join(extra)}" if extra else ""
        advice = "correct model.img_size and model.kwargs" if extra else "choose another model"
        raise UserError(f"model.name: timm cannot make {name}{place} ({reason_of(error)}); {advice}") from error
