"""peft's in-place hot-swapping (`peft.utils.hotswap`) of adapters with shared weights, without recompiling.

A served model needs no shared weights: `prepare_model_for_compiled_hotswap(model, target_rank=R)` gives it plain
factors of rank R, and `hotswap_adapter` fills these with the masked copies of a packed file, padded with zeros.
So adapters may differ in d, r, density, masks, scale and slices, as long as s d r <= R (s slices of a fused layer).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import hotswap
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.methods.lora import LoRA
from capaboost_core.sharing.masks import checksum
from capaboost_peft.config import CapaBoostConfig, peft_type
from capaboost_peft.tuner import Factor, base_path, factor_a, factor_b, factors_of, rows_in

_pad, _swap = hotswap._pad_lora_weights, hotswap.hotswap_adapter_from_state_dict


def register() -> None:
    """Let peft's functions know adapters of type CAPABOOST."""
    hotswap.CONFIG_KEYS_TO_CHECK[peft_type()] = []  # a packed file fits whatever its settings
    hotswap._pad_lora_weights, hotswap.hotswap_adapter_from_state_dict = pad, swap


def pad(model: nn.Module, target_rank: int) -> bool:
    """peft's padding, after shared factors are replaced by plain ones.

    Raises:
        UserError: If an adapter's rank is above the target (before a weight is changed).
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    shared = [(layer, name) for layer in layers for name, a in layer.lora_A.items() if isinstance(a, Factor)]
    for layer, name in shared:
        _check_rank(f"adapter {name}", factors_of(layer, name)[0].rank, target_rank)
    for layer, name in shared:
        make_plain(layer, name)
    return _pad(model, target_rank)


def make_plain(layer: LoraLayer, adapter: str) -> None:
    """Replace a layer's shared factors by plain ones."""
    for factors in (layer.lora_A, layer.lora_B):
        if isinstance(factor := factors[adapter], Factor):
            factors[adapter] = plain(factor)


def plain(factor: Factor) -> nn.Module:
    """peft's own factor with the masked copies as its weight."""
    weight = factor.weight.detach().contiguous()
    kind: Any = nn.Linear
    sizes: tuple[Any, ...] = weight.shape[1::-1]
    if factor.inner:
        kind, sizes = getattr(nn, f"Conv{len(factor.inner)}d"), (*sizes, factor.inner, *factor.convolution)
    module = nn.utils.skip_init(kind, *sizes, bias=False, device=weight.device, dtype=weight.dtype)
    module.weight = nn.Parameter(weight, requires_grad=factor.packed.requires_grad)
    return module.train(factor.training)


def swap(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    adapter_name: str,
    config: LoraConfig,
    parameter_prefix: str = "lora_",
) -> None:
    """peft's swap, to which a packed adapter is the plain LoRA that it equals.

    Raises:
        UserError: If the model is prepared for lower ranks, or the masks are not those that the adapter was trained
            with (before the model is changed).
    """
    if not isinstance(config, CapaBoostConfig):
        return _swap(model, state_dict, adapter_name, config, parameter_prefix)
    state, inner = dict(state_dict), getattr(model, "_orig_mod", model)
    scales: dict[LoraLayer, float] = {}
    drawn: list[tuple[str, np.ndarray]] = []
    for name, layer in inner.named_modules():
        keys = [f"{name}.lora_{letter}.{adapter_name}" for letter in "AB"]
        if f"{keys[0]}.packed" not in state or not isinstance(layer, LoraLayer):
            continue
        path = base_path(name)
        method, factors = _factors(config, path, layer, adapter_name, inner)
        if isinstance(layer.scaling[adapter_name], Tensor):  # peft's preparation has made it one
            _check_rank(path, factors[0].rank, len(_weight(layer.lora_A[adapter_name])))
        for key, letter, factor in zip(keys, "AB", factors, strict=True):
            packed = state.pop(f"{key}.packed")
            _check_masks(packed.numel() == factor.packed.numel())
            factor.packed.data = packed.to("cpu", torch.float32).view(-1, 1)
            state[f"{key}.weight"] = factor.weight.detach()
            drawn.append((f"{path}.lora_{letter}", factor.bits.numpy()))
        scales[layer] = method.scale
    _check_masks(config.expected_checksum in (None, checksum(drawn)))
    for layer in scales:
        make_plain(layer, adapter_name)
    _swap(model, state, adapter_name, LoraConfig(r=1, lora_alpha=1), parameter_prefix)
    for layer, scale in scales.items():
        hotswap._update_scaling(layer, adapter_name=adapter_name, scaling=scale)


def _factors(
    config: CapaBoostConfig, path: str, layer: LoraLayer, adapter: str, model: nn.Module
) -> tuple[LoRA, tuple[Factor, Factor]]:
    """The method of one layer, and shared factors of its r with the sizes of its plain ones."""
    patterns = [(config.rank_pattern or {}, config.r), (config.alpha_pattern or {}, config.lora_alpha)]
    r, alpha = (pattern.get(get_pattern_key(list(pattern), path), default) for pattern, default in patterns)
    method, a, b = config.method(r, alpha), _weight(layer.lora_A[adapter]), _weight(layer.lora_B[adapter])
    rows = rows_in(config, path, len(b), model)
    sizes = (r, *a.shape[1:]), (len(b), r, *b.shape[2:])
    like = [
        SimpleNamespace(weight=torch.zeros(size), stride=1, padding=0, dilation=1, training=False) for size in sizes
    ]
    return method, (factor_a(method, path, like[0], rows), factor_b(method, path, like[1], rows))


def _weight(factor: Any) -> Tensor:
    """The weight of a shared factor, or of a plain one: a linear layer or a convolution."""
    return factor.weight


def _check_rank(what: str, rank: int, capacity: int) -> None:
    if rank > capacity:
        call = f"prepare_model_for_compiled_hotswap(model, target_rank={rank})"
        raise UserError(f"{what} has rank {rank} (slices * d * r); call {call}, or with a larger rank, before")


def _check_masks(same: bool) -> None:
    if not same:
        raise UserError("the masks differ from those that the adapter was trained with; swap it into its base model")
