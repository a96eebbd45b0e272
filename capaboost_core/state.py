"""Adapter files: what was trained, the head included, and the seed from which its masks come again."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.config import CapaBoostConfig
from capaboost_core.errors import UserError
from capaboost_core.inject import (
    Injection,
    adapted_layers,
    attach,
    base_name,
    build,
    injection_of,
    mask_checksum,
    trainable_parameters,
)
from capaboost_core.plan import Plan, in_prefix

WEIGHTS, CONFIG = "adapter.safetensors", "adapter_config.json"
FORMAT = "capaboost-1"


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write `adapter.safetensors` and `adapter_config.json`, each complete or not at all.

    The first holds every trained parameter under its name in the model, the second the configuration,
    the plan, the base model's name and the masks' checksum. Masks themselves are not stored.

    Returns:
        The folder.

    Raises:
        UserError: If the model has no adapter.
    """
    injection = injection_of(model)
    record = {
        "format": FORMAT,
        "base_model": injection.base_model,
        "config": injection.config.to_dict(),
        "plan": injection.plan.to_dict(),
        "mask_checksum": mask_checksum(adapted_layers(model)),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in trainable_parameters(model).items()}
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, partial, {"format": FORMAT, "mask_checksum": record["mask_checksum"]})
    os.replace(partial, folder / WEIGHTS)
    partial = folder / f"{CONFIG}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, folder / CONFIG)
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Load an adapter into its base model, or into a model adapted with the same configuration.

    Everything is checked first: on an error the model is as it was.

    Raises:
        UserError: If a file is missing, truncated or foreign, or belongs to another base model,
            configuration, head size or set of masks.
    """
    folder = Path(folder)
    record = _read_record(folder)
    injection = Injection(
        CapaBoostConfig.from_record(record["config"]), Plan.from_dict(record["plan"]), record["base_model"]
    )
    adapted = hasattr(model, "capaboost")
    _check_model(model, injection, folder)
    layers = {layer.path: layer for layer in adapted_layers(model)} if adapted else _build(model, injection)
    if mask_checksum(list(layers.values())) != record["mask_checksum"]:
        raise UserError(f"{folder}: the masks made from its seed differ from those it was trained with; it is damaged")
    tensors = _read_tensors(folder / WEIGHTS, record["mask_checksum"])
    destinations = _destinations(model, injection, layers)
    _check_tensors(tensors, destinations, folder)
    with torch.no_grad():
        for name, parameter in destinations.items():
            parameter.copy_(tensors[name])
    return model if adapted else attach(model, injection, layers)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / CONFIG).read_text())
    except OSError as error:
        raise UserError(f"{folder} holds no {CONFIG}; give a folder that save_adapter wrote") from error
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not JSON; it is damaged, save the adapter again") from error
    keys = {"base_model", "config", "plan", "mask_checksum"}
    if not isinstance(record, dict) or record.get("format") != FORMAT or not keys <= record.keys():
        raise UserError(f"{folder / CONFIG} is no {FORMAT} adapter; give a folder that save_adapter wrote")
    return record


def _build(model: nn.Module, injection: Injection) -> dict[str, Adapted]:
    state = torch.get_rng_state()  # the initial values are overwritten: leave the caller's stream alone
    layers = build(model, injection.config, injection.plan)
    torch.set_rng_state(state)
    return layers


def _check_model(model: nn.Module, injection: Injection, folder: Path) -> None:
    if PurePath(base_name(model)).name != PurePath(injection.base_model).name:  # a copy in another folder will do
        raise UserError(
            f"{folder} was trained on {injection.base_model}, but the model is {base_name(model)}; load that one"
        )
    if not hasattr(model, "capaboost"):
        return
    if (model.capaboost.config, model.capaboost.plan) != (injection.config, injection.plan):
        mine, theirs = model.capaboost.config.to_dict(), injection.config.to_dict()
        differing = [f"{key}: {theirs[key]} there, {mine[key]} here" for key in mine if mine[key] != theirs[key]]
        raise UserError(
            f"{folder} has another configuration ({'; '.join(differing) or 'targets'}); load into a fresh base model"
        )
    if any(getattr(layer, "merged", False) for layer in adapted_layers(model)):
        raise UserError("the model is merged; call unmerge(model) before load_adapter")


def _read_tensors(path: Path, mask_checksum: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get("mask_checksum")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or truncated; copy or save the adapter again") from error
    if stored != mask_checksum:
        raise UserError(f"{path} and {CONFIG} belong to different adapters; copy both files of one adapter")
    return tensors


def _destinations(model: nn.Module, injection: Injection, layers: dict[str, Adapted]) -> dict[str, nn.Parameter]:
    added = {f"{path}.{n}": p for path, layer in layers.items() for n, p in layer.own_parameters().items()}
    own = {
        name: parameter
        for name, parameter in model.named_parameters()
        if injection.config.method == "full" or any(in_prefix(name, prefix) for prefix in injection.plan.head)
    }
    return own | added


def _check_tensors(tensors: dict[str, Tensor], wanted: dict[str, nn.Parameter], folder: Path) -> None:
    for name in sorted(tensors.keys() ^ wanted.keys()):
        where = "lacks" if name in wanted else "has besides"
        raise UserError(f"{folder / WEIGHTS} {where} {name}; it belongs to another model")
    for name, parameter in wanted.items():
        if tensors[name].shape != parameter.shape:
            raise UserError(
                f"{folder / WEIGHTS}: {name} is {tuple(tensors[name].shape)}, the model's is "
                f"{tuple(parameter.shape)}; create the model with the same num_classes"
            )
