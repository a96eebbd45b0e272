"""A LoRA that peft saved, as the plain method: read without peft."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from capaboost_core.adapter_files.peft_save import CONFIG, PREFIX, WEIGHTS, A, B
from capaboost_core.errors import UserError
from capaboost_core.injection import inject
from capaboost_core.linear_layers import linear_shape
from capaboost_core.methods import Method
from capaboost_core.plan import Plan, Target, in_prefix


def load_peft(model: nn.Module, folder: str | Path) -> nn.Module:
    """Adapt a base model with a LoRA that peft saved, ready to train on: d = 1 at density 1.

    Everything is checked first: on an error the model is unchanged.

    Raises:
        UserError: If the folder holds no LoRA of peft's, or one with more than low-rank products (DoRA, biases), with
            several ranks or scales, or for another base model.
    """
    record, tensors = _read(Path(folder))
    paths = sorted(name.removesuffix(A) for name in tensors if name.endswith(A))
    head = {name: tensor for name, tensor in tensors.items() if not name.endswith((A, B))}
    plan = _plan(record, paths, head, folder)
    config = _config(record, tensors, paths, folder)
    _check_shapes(model, tensors, paths, head, folder)
    inject(model, config, plan)
    with torch.no_grad():
        for path in paths:
            layer = model.get_submodule(path)
            for tied, factor in ((layer.lora_A, tensors[path + A]), (layer.lora_B, tensors[path + B].T)):
                tied.packed.copy_(factor.reshape(tied.packed.shape))
        for name, tensor in head.items():
            model.get_parameter(name).copy_(tensor)
    return model


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's record and its tensors by their names in the base model."""
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load((folder / WEIGHTS).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} holds no readable {CONFIG} and {WEIGHTS}; give a folder that peft saved") from error
    if not isinstance(record, dict) or record.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG} describes no LoRA; only peft's LORA can be loaded")
    return record, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _plan(record: dict[str, Any], paths: list[str], head: dict[str, Tensor], folder: str | Path) -> Plan:
    """Every layer with a factor A, and as the head what peft saved whole."""
    saved = tuple(record.get("modules_to_save") or ())
    for name in head:
        if not any(in_prefix(name, module) for module in saved):
            raise UserError(f"{folder}: {name} does not belong to a plain LoRA; export one without DoRA and biases")
    if not paths:
        raise UserError(f"{folder / Path(WEIGHTS)} holds no lora_A; give a folder that peft saved")
    return Plan(tuple(Target(path) for path in paths), saved)


def _config(record: dict[str, Any], tensors: dict[str, Tensor], paths: list[str], folder: str | Path) -> Method:
    ranks = {len(tensors[path + A]) for path in paths}
    if len(ranks) > 1 or record.get("alpha_pattern"):
        raise UserError(f"{folder} has several ranks or several alphas; load it with peft")
    (rank,) = ranks
    try:
        alpha = float(record["lora_alpha"]) * (math.sqrt(rank) if record.get("use_rslora") else 1)
        return Method(
            method="lora",
            r=rank,
            num_tied=1,
            density=1.0,
            alpha=alpha,
            dropout=float(record.get("lora_dropout") or 0),
            targets=tuple(paths),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{Path(folder) / CONFIG}: {error}; save the adapter with peft again") from error


def _check_shapes(
    model: nn.Module, tensors: dict[str, Tensor], paths: list[str], head: dict[str, Tensor], folder: str | Path
) -> None:
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for path in paths:
        layer, a, b = modules.get(path), tensors[path + A], tensors.get(path + B)
        if b is None or (b.shape[0], a.shape[-1]) != linear_shape(layer):
            raise UserError(
                f"{folder}: the model has no linear layer {path} of the adapter's size; load its base model"
            )
    for name, tensor in head.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise UserError(f"{folder}: the model has no {name} of shape {tuple(tensor.shape)}; give it the same head")
