"""A LoRA that peft saved, as the plain method: read without peft."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from capaboost_core.adapter_files.disk import Limits, read_weights
from capaboost_core.adapter_files.peft_save import CONFIG, PREFIX, WEIGHTS, A, B, all_names
from capaboost_core.adapter_files.record import parse
from capaboost_core.adapter_files.rollback import undone_on_error
from capaboost_core.adapter_files.save import check_finite, check_not_meta
from capaboost_core.errors import UserError
from capaboost_core.files import read_text
from capaboost_core.injection import inject
from capaboost_core.linear_layers import linear_shape
from capaboost_core.methods import Method
from capaboost_core.plan import Plan, Target, in_prefix
from capaboost_core.wrappers import clean, copy_whole, unwrap

# What peft's record may say without changing what a LoRA computes; anything else that it sets is refused.
ORDINARY = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
    *("bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
# First values that leave the frozen weights as they are; peft changes those of the base for the others.
FIRST_VALUES = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Saved:
    """What a folder of peft's holds.

    Attributes:
        record: Its configuration.
        factors: (r, in) and (out, r) of each layer by path.
        beside: All other tensors by their names in the base model.
    """

    folder: Path
    record: dict[str, Any]
    factors: dict[str, tuple[Tensor, Tensor]]
    beside: dict[str, Tensor]

    def refused(self, reason: str) -> UserError:
        return UserError(f"{self.folder}: {reason}")


def load_peft(model: nn.Module, folder: str | Path) -> nn.Module:
    """Adapt a base model with a LoRA that peft saved, ready to train on: d = 1 at density 1.

    What peft saved beside the factors, as modules_to_save, biases or resized embeddings, trains on too, and
    `save_adapter` and `save_peft` write it again. Everything is checked first: on an error the model is unchanged.

    Returns:
        The model that was given, wrapped as it was.

    Raises:
        UserError: If the folder holds no LoRA of peft's, or one with more than low-rank products (DoRA, aLoRA, token
            deltas), whose first values are taken from the frozen weights (PiSSA, OLoRA), with several ranks or
            scales, with values that are not finite, or for another base model.
    """
    bare, saved = unwrap(model), _read(Path(folder), Limits.of(unwrap(model)))
    check_not_meta(bare)
    config, plan = _config(saved), _plan(bare, saved)
    names = all_names(bare)
    _check_factors(bare, saved)
    _check_beside(names, saved)
    with undone_on_error(bare, [names[name] for name in saved.beside]):
        inject(bare, config, plan)
        for path, (a, b) in saved.factors.items():
            layer = bare.get_submodule(path)
            for tied, factor in ((layer.lora_A, a), (layer.lora_B, b.T)):
                copy_whole(tied.packed, factor.reshape(tied.packed.shape))
        for name, tensor in saved.beside.items():
            copy_whole(names[name], tensor)
            names[name].requires_grad_(isinstance(names[name], nn.Parameter))
    return model


def _read(folder: Path, limits: Limits) -> Saved:
    """peft's record and its tensors, by their names in the base model."""
    try:
        record = parse(read_text(folder / CONFIG, limits.text))
        tensors = load(read_weights(folder / WEIGHTS, limits))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder} holds no readable {CONFIG} and {WEIGHTS}; give a folder that peft saved") from error
    if not isinstance(record, dict) or record.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG} describes no LoRA; only peft's LORA can be loaded")
    tensors = {clean(name.removeprefix(PREFIX)): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        check_finite(f"{folder / WEIGHTS}: {name}", tensor, "give an adapter whose training did not diverge")
    paths = sorted(name.removesuffix(A) for name in tensors if name.endswith(A))
    if not paths:
        raise UserError(f"{folder / WEIGHTS} holds no lora_A; give a folder that peft saved")
    lacking = next((path for path in paths if path + B not in tensors), None)
    if lacking is not None:
        raise UserError(f"{folder / WEIGHTS} holds no lora_B of {lacking}; save the adapter with peft again")
    beside = {name.replace(".base_layer.", "."): t for name, t in tensors.items() if not name.endswith((A, B))}
    return Saved(folder, record, {path: (tensors[path + A], tensors[path + B]) for path in paths}, beside)


def _plan(model: nn.Module, saved: Saved) -> Plan:
    """Every layer with a factor A, and as the head the modules of the model that peft saved completely."""
    endings = saved.record.get("modules_to_save") or []
    if not isinstance(endings, list) or not all(isinstance(ending, str) and ending for ending in endings):
        raise saved.refused(f"modules_to_save of {CONFIG} must be a list of names; save the adapter with peft again")
    found = [path for path in map(clean, dict(model.named_modules())) if path.endswith(tuple(endings))]
    found = [path for path in found if any(in_prefix(name, path) for name in saved.beside)]
    head = [path for path in found if not any(path != other and in_prefix(path, other) for other in found)]
    return Plan(tuple(Target(path) for path in saved.factors), tuple(head))


def _config(saved: Saved) -> Method:
    record = saved.record
    other = next((key for key, value in record.items() if value and key not in ORDINARY), None)
    if other is not None:
        raise saved.refused(f"{other} makes it no plain LoRA; load it with peft, or train one without {other}")
    first = record.get("init_lora_weights")
    if not any(first is value or (first == value and isinstance(first, str)) for value in FIRST_VALUES):
        raise saved.refused(
            f"init_lora_weights is {first!r}, with which peft changes the frozen weights; load it with peft and save "
            "it with path_initial_model_for_weight_conversion, as a plain LoRA"
        )
    ranks = {len(a) for a, _ in saved.factors.values()}
    if len(ranks) > 1 or record.get("alpha_pattern"):
        raise UserError(f"{saved.folder} has several ranks or several alphas; load it with peft")
    (rank,) = ranks
    try:
        return Method(
            method="lora",
            r=rank,
            num_tied=1,
            density=1.0,
            alpha=float(record["lora_alpha"]) * (math.sqrt(rank) if record.get("use_rslora") else 1),
            dropout=float(record.get("lora_dropout") or 0),
            targets=tuple(saved.factors),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{saved.folder / CONFIG}: {error}; save the adapter with peft again") from error


def _check_factors(model: nn.Module, saved: Saved) -> None:
    modules = {clean(path): module for path, module in model.named_modules()}
    for path, (a, b) in saved.factors.items():
        shape = linear_shape(modules.get(path))
        if shape is None or (a.shape, b.shape) != ((len(a), shape[1]), (shape[0], len(a))):
            raise saved.refused(
                f"the model has no linear layer {path} for factors of {tuple(a.shape)} and {tuple(b.shape)}; load its "
                "base model"
            )


def _check_beside(names: Mapping[str, Tensor], saved: Saved) -> None:
    """Refuse what has no place in the model, and what peft has apart where the model has one tensor."""
    for name, tensor in saved.beside.items():
        if name not in names:
            raise saved.refused(f"{name} does not belong to a plain LoRA of this model; load it with peft")
        if names[name].shape != tensor.shape:
            raise saved.refused(f"the model has no {name} of shape {tuple(tensor.shape)}; give it the same head")
        tied = [other for other, held in names.items() if held is names[name] and other != name]
        same = torch.equal(names[name].cpu().to(tensor.dtype), tensor)
        for other in () if same else tied:
            if not torch.equal(saved.beside.get(other, torch.empty(0)), tensor):
                raise saved.refused(
                    f"{name} was trained apart from {other}, with which it is tied in the model; load it with peft, "
                    "or into a model with tie_word_embeddings=False"
                )
