"""Merging into quantized weights: an error if they cannot be quantized again, else a warning of the rounding error."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from capaboost_core.errors import UserError

if TYPE_CHECKING:  # each of peft's quantized layers has what peft's linear layer has
    from peft.tuners.lora import Linear as PeftLayer
else:
    PeftLayer = object

UNQUANTIZED = "load the base model unquantized and merge into that"


class RoundedMergeWarning(UserWarning):
    """An increment was merged into quantized weights, and rounding has changed it."""


class Quantized(PeftLayer):
    """Mixin of peft's layers of quantized weights.

    Attributes:
        rounding: Norm of the error that the last merge made by rounding, relative to the norm of the increment.
    """

    rounding = 0.0

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        base, before = self.get_base_layer(), set(self.merged_adapters)
        weight = dequantize_module_weight(base).detach().clone()
        super().merge(safe_merge, adapter_names)
        increments = [self.get_delta_weight(name) for name in self.merged_adapters if name not in before]
        if increments:
            increment = functools.reduce(torch.add, increments)
            lost = dequantize_module_weight(base).detach() - weight - increment
            self.rounding = (lost.norm() / increment.norm().clamp(min=1e-30)).item()


@functools.cache
def rounding_class(cls: type[nn.Module]) -> type[nn.Module]:
    """A class of peft's layers that also measures its merges."""
    return type(cls.__name__, (Quantized, cls), {})


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer of LoRA is one that peft has made for quantized weights."""
    module_of_class = type(module).__module__
    return isinstance(module, LoraLayer) and module_of_class.endswith((".bnb", ".torchao", ".hqq"))


def check_merge(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse to merge into weights that cannot be read or quantized again.

    Raises:
        UserError: If there are any (before the model is changed).
    """
    for name, layer in layers:
        if not isinstance(layer, Quantized):
            continue
        if getattr(layer, "get_apply_tensor_subclass", layer) is None:  # of torchao's alone
            how = "from_pretrained(..., quantization_config=TorchAoConfig(...))"
            raise UserError(f"{name} cannot be quantized again after merging; load the base model by {how}, or plain")
        try:
            dequantize_module_weight(layer.get_base_layer())
        except NotImplementedError:
            kind = type(layer.get_base_layer().weight).__name__
            raise UserError(f"{name} has weights of type {kind}, which cannot be merged into; {UNQUANTIZED}") from None


@contextmanager
def stated(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Warn after a merge of the error that rounding has made."""
    quantized = [layer for layer in layers if isinstance(layer, Quantized)]
    for layer in quantized:
        layer.rounding = 0.0
    yield
    worst = max((layer.rounding for layer in quantized), default=0.0)
    if worst:
        warnings.warn(
            "merged into quantized weights, whose rounding changes the increments by up to "
            f"{worst:.2%} of their norm; to merge exactly, {UNQUANTIZED}",
            RoundedMergeWarning,
            stacklevel=4,
        )
