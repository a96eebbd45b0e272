"""An adapted model as an ordinary LoRA in peft's file format, written without peft."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from capaboost_core.account import account_of, persistent_buffers
from capaboost_core.adapted import Adapted
from capaboost_core.adapter_files.save import check_complete, check_not_meta, check_sound, values_of
from capaboost_core.errors import UserError
from capaboost_core.files import write_together
from capaboost_core.injection import adapted_layers, injection_of, own_parameters
from capaboost_core.plan import in_prefix
from capaboost_core.wrappers import clean, is_sharded, unwrap

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # of every name in peft's files
A, B = ".lora_A.weight", ".lora_B.weight"


def save_peft(model: nn.Module, folder: str | Path) -> Path:
    """Write an adapted model's increments as one ordinary LoRA, which stock peft loads.

    sum_i (B * mb_i)(A * ma_i) on the s slices of a layer is [B_1 .. B_sd][A_1; ..; A_sd], with zeros in the rows of
    B outside its slice: a LoRA of rank s * d * r, whose B holds the scale. It is the product that the model itself
    computes, so that `PeftModel.from_pretrained(base, folder)` differs from the model by rounding only. The base must
    have a head of the same size.

    What else trains or has moved is saved as peft's `modules_to_save`, with the modules that hold it: embeddings with
    what is tied to them, norms, poolers. A trained bias of an adapted layer is saved as peft's `lora_only` does.

    Worked example: q and v of ViT-B/16's fused qkv, r = 8, d = 2: lora_A is (32, 768), lora_B (2304, 32).

    Returns:
        The folder.

    Raises:
        UserError: If the model has no adapter, a method other than LoRA, an architecture in which peft's layers have
            no effect (timm's BEiT, EVA, SwinV2), values that are not finite, or trains what peft's format cannot
            hold: the weight of an adapted layer, or a parameter outside any layer. Nothing is written then.
    """
    model = unwrap(model)
    injection, layers = injection_of(model), adapted_layers(model)
    if not layers or not all(layer.low_rank for layer in layers):
        raise UserError(f"method {injection.config.method} is no LoRA, which peft could load; use save_adapter")
    if injection.plan.switches:
        path = injection.plan.switches[0][0]
        raise UserError(f"{injection.base_model} reads weights of {path} past peft's layers; use save_adapter")
    if any(map(is_sharded, model.parameters())):
        raise UserError("the weights are sharded over processes; save_adapter, load it into one process, and export")
    check_complete(model, injection, layers)
    check_not_meta(model)
    check_sound(model, injection)
    factors = {layer.path: _whole_factors(layer) for layer in layers}
    modules, biases = _beside(model, injection.plan.head, layers)
    tensors = biases | _contents(model, modules)
    for at, suffix in enumerate((A, B)):
        tensors |= {path + suffix: pair[at] for path, pair in factors.items()}
    record = _record({path: len(a) for path, (a, _) in factors.items()}, modules, injection.base_model)
    record["fan_in_fan_out"] = all(layer.fan_in_fan_out for layer in layers)
    record["bias"] = "lora_only" if biases else "none"
    record["auto_mapping"] = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    stored = {PREFIX + name: tensor.clone() for name, tensor in values_of(model, tensors).items()}
    return write_lora(Path(folder), stored, record)


def _beside(model: nn.Module, head: Sequence[str], layers: list[Adapted]) -> tuple[list[str], dict[str, Tensor]]:
    """The modules that hold what trains beside the factors, and the biases of adapted layers by their names in peft.

    Raises:
        UserError: For what is in neither.
    """
    adapted, added = {layer.path for layer in layers}, own_parameters(layers)
    changed = {id(tensor) for name, tensor in account_of(model).everything.items() if name not in added}
    modules, biases = set(), {}
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
    """With all modules whose paths end in the text of one of them, since peft takes those too."""
    ends = tuple(modules)
    found = {path for path in map(clean, dict(model.named_modules())) if ends and path.endswith(ends)}
    for path in found:
        if _within(path, adapted):
            raise UserError(f"peft would take {path} for a module of the head, and it is adapted; use save_adapter")
    return sorted(found)


def _within(path: str, adapted: set[str]) -> bool:
    """Whether a module is an adapted layer, within one, or holds one."""
    return any(in_prefix(layer, path) or in_prefix(path, layer) for layer in adapted)


def _contents(model: nn.Module, modules: list[str]) -> dict[str, Tensor]:
    """All that the state dicts of these modules hold, by their names in the bare model."""
    return {name: t for name, t in all_names(model).items() if any(in_prefix(name, path) for path in modules)}


def all_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, those that are tied under each of their names."""
    parameters = {clean(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    return parameters | persistent_buffers(model)


@torch.no_grad()
def _whole_factors(layer: Adapted) -> tuple[Tensor, Tensor]:
    """A (s*d*r, in) and B (out, s*d*r) of the increment on the whole output."""
    by_slice = layer.factors_by_slice()
    a = torch.cat([a for a, _ in by_slice])
    b = a.new_zeros(layer.out_features, len(a))
    at = 0
    for (start, stop), (_, of_slice) in zip(layer.slices, by_slice, strict=True):
        b[start:stop, at : at + of_slice.shape[1]] = of_slice
        at += of_slice.shape[1]
    return a, b


def _record(ranks: dict[str, int], modules: list[str], base_model: str) -> dict[str, Any]:
    """peft's configuration; what it leaves out has peft's default."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    other = {path: rank for path, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": common,
        "lora_alpha": common,  # B holds the scale
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "modules_to_save": modules or None,
        "inference_mode": True,
    }


def write_lora(folder: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Write a LoRA's two files together.

    Args:
        folder: Gets them.
        tensors: Contiguous, each with memory of its own, by their names in peft's file.
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
