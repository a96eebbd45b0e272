"""LoRA in peft's file format: `save_peft` writes an adapted model as one, `load_peft` reads one; both without peft."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from capaboost_core.account import account_of, persistent_buffers
from capaboost_core.adapter_files.disk import PEFT_WEIGHTS as WEIGHTS
from capaboost_core.adapter_files.disk import Limits, config_path, read_weights
from capaboost_core.adapter_files.record import parse
from capaboost_core.adapter_files.save import check_complete, check_finite, check_not_meta, check_sound, values_of
from capaboost_core.errors import UserError
from capaboost_core.files import read_text, write_together
from capaboost_core.injection import adapted_layers, inject, injection_of, own_parameters, undone_on_error
from capaboost_core.layers import Adapted, LowRankLayer
from capaboost_core.methods import Method
from capaboost_core.plan import Plan, Target, in_prefix, linear_shape
from capaboost_core.sharing.tied import TiedWeight
from capaboost_core.wrappers import copy_full, is_sharded, named_modules, strip_wrappers, unwrap

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # of every name in peft's files
A, B = ".lora_A.weight", ".lora_B.weight"
# Keys of peft's record with which a LoRA stays a plain one; any other key with a value raises an error.
PLAIN_LORA_KEYS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
    *("bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
# Values of `init_lora_weights` with which peft does not change the frozen weights.
HARMLESS_INITS = (True, False, None, "gaussian", "orthogonal", "eva")


def save_peft(model: nn.Module, folder: str | Path) -> Path:
    """Write an adapted model's increments as one plain LoRA, which stock peft loads.

    sum_i (B * mb_i)(A * ma_i) on the s slices of a layer is `[B_1 .. B_sd] [A_1; ..; A_sd]`, with zeros in the rows of
    B outside its slice: a LoRA of rank s * d * r, whose B includes the scale. The model computes the same
    product, so that `PeftModel.from_pretrained(base, folder)` differs from the model by rounding only. The base must
    have a head of the same size.

    Other tensors that train or have changed are saved as peft's `modules_to_save`, with the complete modules that hold
    them: embeddings and layers tied to them, norms, poolers. Trained biases of adapted layers are saved as with peft's
    `bias="lora_only"`.

    Worked example: q and v of ViT-B/16's fused qkv, r = 8, d = 2: lora_A is (32, 768), lora_B (2304, 32).

    Returns:
        The folder.

    Raises:
        UserError: If the model has no adapter, a method other than LoRA, an architecture in which peft's layers have
            no effect (timm's BEiT, EVA, SwinV2), values that are not finite, or a trained parameter that peft's format
            cannot hold: the weight of an adapted layer, or a parameter outside any layer. Nothing is written then.
    """
    model = unwrap(model)
    injection, layers = injection_of(model), adapted_layers(model)
    if not layers or not all(layer.low_rank for layer in layers):
        raise UserError(f"method {injection.config.method} is no LoRA, which peft could load; use save_adapter")
    if injection.plan.required_flags:
        path = injection.plan.required_flags[0][0]
        raise UserError(
            f"{injection.base_model} reads weights of {path} without calling peft's layers; use save_adapter"
        )
    if any(map(is_sharded, model.parameters())):
        raise UserError("the weights are sharded over processes; save_adapter, load it into one process, and export")
    check_complete(model, injection, layers)
    check_not_meta(model)
    check_sound(model, injection)
    low_rank = cast(list[LowRankLayer], layers)
    factors = {layer.path: _joined_factors(layer) for layer in low_rank}
    modules, biases = _beside(model, injection.plan.head, layers)
    tensors = biases | _contents(model, modules)
    for path, (a, b) in factors.items():
        tensors |= {path + A: a, path + B: b}
    record = _record({path: len(a) for path, (a, _) in factors.items()}, modules, injection.base_model)
    record["fan_in_fan_out"] = all(layer.fan_in_fan_out for layer in low_rank)
    record["bias"] = "lora_only" if biases else "none"
    record["auto_mapping"] = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    stored = {PREFIX + name: tensor.clone() for name, tensor in values_of(model, tensors).items()}
    return write_lora(Path(folder), stored, record)


def _beside(model: nn.Module, head: Sequence[str], layers: list[Adapted]) -> tuple[list[str], dict[str, Tensor]]:
    """The modules that hold trained tensors besides the factors, and biases of adapted layers by their names in peft.

    Raises:
        UserError: If a trained tensor is in neither.
    """
    adapted, added = {layer.path for layer in layers}, own_parameters(layers)
    changed = {id(tensor) for name, tensor in account_of(model).everything.items() if name not in added}
    modules: set[str] = set()
    biases: dict[str, Tensor] = {}
    for name, tensor in all_names(model).items():
        if id(tensor) not in changed:
            continue
        owner, _, leaf = name.rpartition(".")
        if owner in adapted and leaf == "bias":
            biases[f"{owner}.base_layer.bias"] = tensor
            continue
        above = (prefix for prefix in head if in_prefix(owner, prefix) and not _within(prefix, adapted))
        owner = next(above, owner)
        if not owner or _within(owner, adapted):
            raise UserError(f"{name} trains, which peft's format cannot hold; freeze it, or use save_adapter")
        modules.add(owner)
    outer = {path for path in modules if not any(path != other and in_prefix(path, other) for other in modules)}
    return _as_peft_finds(model, outer, adapted), biases


def _as_peft_finds(model: nn.Module, modules: set[str], adapted: set[str]) -> list[str]:
    """The given modules, and all whose paths end in the text of one of them, since peft saves those too."""
    ends = tuple(modules)
    found = {path for path in named_modules(model) if ends and path.endswith(ends)}
    for path in found:
        if _within(path, adapted):
            raise UserError(f"peft would save {path} as a module of the head, and it is adapted; use save_adapter")
    return sorted(found)


def _within(path: str, adapted: set[str]) -> bool:
    """Whether a module is an adapted layer, within one, or holds one."""
    return any(in_prefix(layer, path) or in_prefix(path, layer) for layer in adapted)


def _contents(model: nn.Module, modules: list[str]) -> dict[str, Tensor]:
    """The tensors of the modules' state dicts by their names in the bare model."""
    return {name: t for name, t in all_names(model).items() if any(in_prefix(name, path) for path in modules)}


def all_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied ones under each of their names."""
    parameters = {
        strip_wrappers(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    return parameters | persistent_buffers(model)


@torch.no_grad()
def _joined_factors(layer: LowRankLayer) -> tuple[Tensor, Tensor]:
    """A (s*d*r, in) and B (out, s*d*r) of the increments of all slices."""
    by_slice = layer.factors_by_slice()
    a = torch.cat([a for a, _ in by_slice])
    b = a.new_zeros(layer.out_features, len(a))
    begin = 0
    for (start, stop), (_, of_slice) in zip(layer.slices, by_slice, strict=True):
        end = begin + of_slice.shape[1]
        b[start:stop, begin:end] = of_slice
        begin = end
    return a, b


def _record(ranks: dict[str, int], modules: list[str], base_model: str) -> dict[str, Any]:
    """peft's configuration; keys that it lacks have peft's defaults."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    other = {path: rank for path, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": common,
        "lora_alpha": common,  # so that peft's scale is 1: B includes ours
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "modules_to_save": modules or None,
        "inference_mode": True,
    }


def write_lora(folder: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Write a LoRA's two files together.

    Args:
        folder: The folder.
        tensors: Contiguous and without shared memory, by their names in peft's file.
        record: peft's configuration.

    Returns:
        The folder.

    Raises:
        UserError: As `write_together`.
    """
    weights, text = save(tensors, {"format": "pt"}), json.dumps(record, indent=2) + "\n"
    write_together(
        {folder / WEIGHTS: lambda file: file.write(weights), folder / CONFIG: lambda file: file.write(text.encode())}
    )
    return folder


@dataclass(frozen=True)
class PeftLora:
    """A LoRA that peft saved.

    Attributes:
        record: peft's configuration.
        factors: (r, in) and (out, r) of each layer by path.
        other: All other tensors by their names in the base model.
    """

    folder: Path
    record: dict[str, Any]
    factors: dict[str, tuple[Tensor, Tensor]]
    other: dict[str, Tensor]

    def error(self, reason: str) -> UserError:
        return UserError(f"{self.folder}: {reason}")


def load_peft(model: nn.Module, folder: str | Path) -> nn.Module:
    """Adapt a base model with a LoRA that peft saved, ready to train on: d = 1 at density 1.

    What peft saved besides the factors, as modules_to_save, biases or resized embeddings, trains too, and
    `save_adapter` and `save_peft` save it. Everything is checked first: on an error the model is unchanged.

    Returns:
        The given model, with its wrappers.

    Raises:
        UserError: If the folder holds no LoRA of peft's, or one with more than low-rank products (DoRA, aLoRA, token
            deltas), one that is initialized from the frozen weights (PiSSA, OLoRA), has several ranks or scales or
            values that are not finite, or belongs to another base model.
    """
    bare, saved = unwrap(model), _read(Path(folder), Limits.of(unwrap(model)))
    check_not_meta(bare)
    config, plan = _config(saved), _plan(bare, saved)
    names = all_names(bare)
    _check_factors(bare, saved)
    _check_other(names, saved)
    with undone_on_error(bare, [names[name] for name in saved.other]):
        inject(bare, config, plan)
        for path, (a, b) in saved.factors.items():
            for name, factor in (("lora_A", a), ("lora_B", b.T)):
                tied = bare.get_submodule(f"{path}.{name}")
                assert isinstance(tied, TiedWeight)
                copy_full(tied.packed, factor.reshape(tied.packed.shape))
        for name, tensor in saved.other.items():
            copy_full(names[name], tensor)
            names[name].requires_grad_(isinstance(names[name], nn.Parameter))
    return model


def _read(folder: Path, limits: Limits) -> PeftLora:
    """peft's record and its tensors, by their names in the base model."""
    try:
        record = cast(dict[str, Any], parse(read_text(folder / CONFIG, limits.text)))
        tensors = load(read_weights(folder / WEIGHTS, limits))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        if config_path(folder).exists() and not (folder / CONFIG).exists():
            raise UserError(f"{folder} holds an adapter of save_adapter; call load_adapter(model, folder)") from error
        raise UserError(f"{folder} holds no readable {CONFIG} and {WEIGHTS}; give a folder that peft saved") from error
    if not isinstance(cast(Any, record), dict) or record.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG} describes no LoRA; only peft's LORA can be loaded")
    tensors = {strip_wrappers(name.removeprefix(PREFIX)): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        check_finite(f"{folder / WEIGHTS}: {name}", tensor, "give an adapter whose training did not diverge")
    paths = sorted(name.removesuffix(A) for name in tensors if name.endswith(A))
    if not paths:
        raise UserError(f"{folder / WEIGHTS} holds no lora_A; give a folder that peft saved")
    lacking = next((path for path in paths if path + B not in tensors), None)
    if lacking is not None:
        raise UserError(f"{folder / WEIGHTS} holds no lora_B of {lacking}; save the adapter with peft again")
    other = {name.replace(".base_layer.", "."): t for name, t in tensors.items() if not name.endswith((A, B))}
    return PeftLora(folder, record, {path: (tensors[path + A], tensors[path + B]) for path in paths}, other)


def _plan(model: nn.Module, saved: PeftLora) -> Plan:
    """The layers with a factor A, and as the head the modules that peft saved completely."""
    endings = cast(list[str], saved.record.get("modules_to_save") or [])
    if not isinstance(cast(Any, endings), list) or not all(isinstance(cast(Any, e), str) and e for e in endings):
        raise saved.error(f"modules_to_save of {CONFIG} must be a list of names; save the adapter with peft again")
    found = [path for path in named_modules(model) if path.endswith(tuple(endings))]
    found = [path for path in found if any(in_prefix(name, path) for name in saved.other)]
    head = [path for path in found if not any(path != other and in_prefix(path, other) for other in found)]
    return Plan(tuple(Target(path) for path in saved.factors), tuple(head))


def _config(saved: PeftLora) -> Method:
    record = saved.record
    other = next((key for key, value in record.items() if value and key not in PLAIN_LORA_KEYS), None)
    if other is not None:
        raise saved.error(f"{other} makes it no plain LoRA; load it with peft, or train one without {other}")
    first = record.get("init_lora_weights")
    if not any(first is value or (first == value and isinstance(first, str)) for value in HARMLESS_INITS):
        raise saved.error(
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


def _check_factors(model: nn.Module, saved: PeftLora) -> None:
    modules = named_modules(model)
    for path, (a, b) in saved.factors.items():
        shape = linear_shape(modules.get(path))
        if shape is None or (a.shape, b.shape) != ((len(a), shape[1]), (shape[0], len(a))):
            raise saved.error(
                f"the model has no linear layer {path} for factors of {tuple(a.shape)} and {tuple(b.shape)}; load its "
                "base model"
            )


def _check_other(names: Mapping[str, Tensor], saved: PeftLora) -> None:
    """Refuse tensors that the model lacks, and different values of what is one tied tensor in the model."""
    for name, tensor in saved.other.items():
        if name not in names:
            raise saved.error(f"{name} does not belong to a plain LoRA of this model; load it with peft")
        if names[name].shape != tensor.shape:
            raise saved.error(f"the model has no {name} of shape {tuple(tensor.shape)}; give it the same head")
        tied = [other for other, found in names.items() if found is names[name] and other != name]
        same = torch.equal(names[name].cpu().to(tensor.dtype), tensor)
        for other in () if same else tied:
            if not torch.equal(saved.other.get(other, torch.empty(0)), tensor):
                raise saved.error(
                    f"{name} was trained apart from {other}, with which it is tied in the model; load it with peft, "
                    "or into a model with tie_word_embeddings=False"
                )
