"""From a peft model's adapter to `capaboost_core`'s files and back, to the bit, and to an ordinary LoRA."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from capaboost_core.adapter_files.base_model import Fingerprint, fingerprint
from capaboost_core.adapter_files.disk import Adapter, Limits, read_adapter, write_adapter
from capaboost_core.adapter_files.load import check_base, check_weights
from capaboost_core.adapter_files.peft import PREFIX, write_lora
from capaboost_core.adapter_files.record import Record
from capaboost_core.errors import UserError
from capaboost_core.injection import base_name
from capaboost_core.methods.lora import LoRA
from capaboost_core.plan import Plan, Target, in_prefix
from capaboost_peft.config import TYING, CapaBoostConfig
from capaboost_peft.tuner import base_path, check_shared, factors_of, layers_with, mask_checksum

WITHOUT_CORE = ("rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices")


def to_core(model: PeftModel, folder: str | Path, adapter_name: str = "default") -> Path:
    """Write an adapter of a peft model as `capaboost_core.save_adapter` would, for `load_adapter`.

    The entries are the same to the bit; so are their order and the masks. `modules_to_save` become the head.

    Returns:
        The folder.

    Raises:
        UserError: If the model has no such adapter, or it has what the core's files do not: several ranks or alphas,
            convolutions, complete attentions, experts, biases, trained tokens. Nothing is written then.
    """
    config, base = _capaboost_config(model, adapter_name), model.get_base_model()
    layers = {base_path(name): layer for name, layer in layers_with(base, adapter_name)}
    for setting in WITHOUT_CORE:
        if getattr(config, setting):
            raise UserError(f"{setting}: the core's files have none; save with save_pretrained")
    if config.bias != "none":
        raise UserError("bias: the core's files have none; save with save_pretrained")
    for path, layer in layers.items():
        if not isinstance(layer, lora.Linear):
            raise UserError(f"{path}: the core adapts linear layers alone; save with save_pretrained")
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    head = tuple(base_path(n) for n, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper))
    record = Record(
        base_model=base_name(base),
        config=config.method(targets=tuple(layers)),
        plan=Plan(tuple(Target(path, _slices(layer, adapter_name)) for path, layer in layers.items()), head),
        mask_checksum=mask_checksum(base, adapter_name),
        extra=(),
        fingerprint=_fingerprint(base),
    )
    tensors = {name.removeprefix(PREFIX): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_adapter(Path(folder), record, tensors)
    return Path(folder)


def from_core(base: nn.Module, folder: str | Path, adapter_name: str = "default") -> PeftModel:
    """A base model with an adapter of method `lora` that `capaboost_core.save_adapter` wrote, as a peft model.

    Its head becomes `modules_to_save`. All is trainable.

    Raises:
        UserError: If the files are damaged, of another method or another base model, or hold more than increments of
            linear layers and a head.
    """
    adapter = read_adapter(Path(folder), Limits.of(base))
    record, method = adapter.record, adapter.record.config
    check_base(base, adapter)
    if type(method) is not LoRA or record.extra:
        what = ", ".join(record.extra or ()) or f"method {method.name}"
        raise UserError(f"{folder} holds {what}, which CapaBoostConfig has no form for; use load_adapter")
    assert isinstance(method, LoRA)
    head = _head(base, adapter)
    check_weights(base, adapter, adapter.tensors)
    targets = record.plan.targets
    config = CapaBoostConfig(
        r=method.r,
        lora_alpha=cast(int, method.r if method.alpha is None else method.alpha),  # peft takes any number
        lora_dropout=method.dropout,
        target_modules=[target.path for target in targets],
        modules_to_save=head or None,
        slices={target.path: [list(pair) for pair in target.slices] for target in targets if target.slices} or None,
        mask_checksum=record.mask_checksum,
        **{name: getattr(method, name) for name in TYING},
    )
    model = get_peft_model(base, config, adapter_name)
    tensors = {PREFIX + name: tensor for name, tensor in adapter.tensors.items()}
    unknown = set_peft_model_state_dict(model, tensors, adapter_name).unexpected_keys
    if unknown:
        raise UserError(f"{folder}: the model has no {unknown[0].removeprefix(PREFIX)}; load its base model")
    return model


def save_lora(model: PeftModel, folder: str | Path, adapter_name: str = "default") -> Path:
    """Write an adapter of a peft model as an ordinary LoRA, which needs peft alone and computes the same.

    An increment on s slices with d modules of rank r is a LoRA of rank s d r, whose factors are the masked copies, to
    the bit; its alpha holds the scale. The exception is mask: dropout, of which evaluation sees the mean. Servers that
    limit the rank of a LoRA have to allow s d r.

    Worked example: q and v of ViT-B/16's fused qkv, r = 8, d = 2: lora_A is (32, 768), lora_B (2304, 32).

    Returns:
        The folder.

    Raises:
        UserError: If the model has no such adapter.
    """
    config = _capaboost_config(model, adapter_name)
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    ranks, alphas = {}, {}
    for name, layer in layers_with(model, adapter_name):
        for letter, factor in zip("AB", factors_of(layer, adapter_name), strict=True):
            del state[f"{name}.lora_{letter}.packed"]
            state[f"{name}.lora_{letter}.weight"] = factor.weight
        rank = layer.r[adapter_name] * config.num_tied * len(factors_of(layer, adapter_name)[0].rows)
        ranks[base_path(name)], alphas[base_path(name)] = rank, layer.scaling[adapter_name] * rank
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    record = _lora_config(config, ranks, alphas).to_dict()
    listed = {key: sorted(value) if isinstance(value, set) else value for key, value in record.items()}
    return write_lora(Path(folder), tensors, listed)


def _lora_config(config: CapaBoostConfig, ranks: dict[str, int], alphas: dict[str, float]) -> LoraConfig:
    """A LoRA's settings, with patterns for the layers that differ from most."""
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    values = {setting.name: getattr(config, setting.name) for setting in fields(LoraConfig) if setting.init}
    changes = {
        "peft_type": None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: other for path, other in ranks.items() if other != rank},
        "alpha_pattern": {path: other for path, other in alphas.items() if other != alpha},
        "use_rslora": False,
        "inference_mode": True,
    }
    return LoraConfig(**values | changes)


def _slices(layer: LoraLayer, adapter: str) -> tuple[tuple[int, int], ...] | None:
    rows = factors_of(layer, adapter)[0].rows
    return None if rows == ((0, layer.out_features),) else rows


def _head(base: nn.Module, adapter: Adapter) -> list[str]:
    """What `modules_to_save` has to list; peft takes every module whose path ends in an entry."""
    modules = dict(base.named_modules())
    head = [prefix for prefix in adapter.record.plan.head if any(in_prefix(n, prefix) for n in adapter.tensors)]
    for prefix in head:
        if [path for path in modules if path.endswith(prefix)] != [prefix]:
            raise UserError(f"{adapter.folder}: modules_to_save cannot mean {prefix} alone here; use load_adapter")
        for name, parameter in modules[prefix].named_parameters(prefix):
            shape = adapter.tensors[name].shape if name in adapter.tensors else None
            if shape != parameter.shape:
                raise UserError(f"{adapter.folder}: the model has no {name} of shape {shape}; give it the same head")
    return head


def _fingerprint(base: nn.Module) -> Fingerprint:
    """That of the frozen weights, under their names without peft's layers."""
    found = fingerprint(base, ())
    added = re.compile(r"\.(lora_[AB]|modules_to_save|original_module)\.")
    values = {base_path(name): value for name, value in found.values.items() if not added.search(name)}
    return replace(found, values=dict(sorted(values.items())))


def _capaboost_config(model: PeftModel, adapter_name: str) -> CapaBoostConfig:
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, CapaBoostConfig):
        raise UserError(f"the model has no CapaBoost adapter {adapter_name!r}; give one that get_peft_model returned")
    check_shared(model, adapter_name)
    return config
