"""An adapted model as an ordinary LoRA in peft's file format, written without peft."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError
from capaboost_core.files import write_atomically
from capaboost_core.injection import adapted_layers, injection_of
from capaboost_core.plan import in_prefix

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # of every name in peft's files
A, B = ".lora_A.weight", ".lora_B.weight"


def save_peft(model: nn.Module, folder: str | Path) -> Path:
    """Write an adapted model's increments as one ordinary LoRA, which stock peft loads.

    sum_i (B * mb_i)(A * ma_i) on the s slices of a layer is [B_1 .. B_sd][A_1; ..; A_sd], with zeros in the rows of
    B outside its slice: a LoRA of rank s * d * r, whose B holds the scale. It is the product that the model itself
    computes, so that `PeftModel.from_pretrained(base, folder)` differs from the model by rounding only. The head is
    saved as peft's `modules_to_save`; the base must have one of the same size.

    Worked example: q and v of ViT-B/16's fused qkv, r = 8, d = 2: lora_A is (32, 768), lora_B (2304, 32).

    Returns:
        The folder.

    Raises:
        UserError: If the model has no adapter, a method other than LoRA, or an architecture in which peft's
            layers have no effect (timm's BEiT, EVA, SwinV2).
    """
    injection = injection_of(model)
    layers = adapted_layers(model)
    if not layers or not all(layer.low_rank for layer in layers):
        raise UserError(f"method {injection.config.method} is no LoRA, which peft could load; use save_adapter")
    if injection.plan.switches:
        path = injection.plan.switches[0][0]
        raise UserError(f"{injection.base_model} reads weights of {path} past peft's layers; use save_adapter")
    factors = {layer.path: _whole_factors(layer) for layer in layers}
    head = {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(in_prefix(name, prefix) for prefix in injection.plan.head)
    }
    tensors = (
        head | {path + A: a for path, (a, _) in factors.items()} | {path + B: b for path, (_, b) in factors.items()}
    )
    record = _record({path: len(a) for path, (a, _) in factors.items()}, head, injection.base_model)
    record["fan_in_fan_out"] = all(layer.fan_in_fan_out for layer in layers)
    return _write(Path(folder), tensors, record)


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


def _record(ranks: dict[str, int], head: dict[str, Tensor], base_model: str) -> dict[str, Any]:
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
        "modules_to_save": sorted({name.rpartition(".")[0] for name in head}) or None,
        "bias": "none",
        "inference_mode": True,
    }


def _write(folder: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    stored = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    weights, text = save(stored, {"format": "pt"}), json.dumps(record, indent=2) + "\n"
    write_atomically(folder / WEIGHTS, lambda file: file.write(weights))
    write_atomically(folder / CONFIG, lambda file: file.write(text.encode()))
    return folder
