"""Merging into quantized weights: refused where they cannot be quantized again, else with its error stated."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from capaboost_core.errors import UserError

UNQUANTIZED = "load the base model unquantized and merge into that"


class RoundedMergeWarning(UserWarning):
    """Quantized weights that an increment was merged into hold it but for their rounding."""


class Quantized:
    """Mixed into peft's layers of quantized weights.

    Attributes:
        rounding: Norm of what the last merge lost by rounding, over that of the increment.
    """

    rounding = 0.0

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        base, before = self.get_base_layer(), set(self.merged_adapters)
        weight = dequantize_module_weight(base).detach().clone()
        super().merge(safe_merge, adapter_names)
        increments = [self.get_delta_weight(name) for name in self.merged_adapters if name not in before]
        if increments:
            increment = sum(increments)
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
    """Say after a merge how much of the increments rounding has cost."""
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
