"""A frozen layer that carries a trainable addition: what LoRA and the adapters have in common."""

from __future__ import annotations

import torch
from torch import nn

from capaboost_core.config import CapaBoostConfig
from capaboost_core.tied import TiedWeight


class Adapted(nn.Module):
    """Mixin of layers that adopt a base layer's weight and bias, so that its state-dict keys stay as they are.

    It stands before the base's class: `class CapaLinear(Adapted, nn.Linear)`.
    """

    def adopt(self, base: nn.Module, path: str) -> None:
        """Take over attributes and parameters of the base; called in place of its class's constructor."""
        nn.Module.__init__(self)
        for name, value in vars(base).items():
            if name not in vars(self):
                setattr(self, name, value)
        self.weight, self.bias = base.weight, base.bias
        self.path, self.enabled = path, True
        self.training = base.training

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of the addition, without the adopted weight and bias."""
        return {name: p for name, p in self.named_parameters() if name not in ("weight", "bias")}

    def tied_weights(self) -> dict[str, TiedWeight]:
        return {name: module for name, module in self.named_modules() if isinstance(module, TiedWeight)}


def dropout_of(config: CapaBoostConfig) -> nn.Module:
    return nn.Dropout(config.dropout) if config.dropout else nn.Identity()


def empty_beside(weight: torch.Tensor, *shape: int) -> torch.Tensor:
    """An empty trainable tensor beside a frozen one; single precision even where that has half."""
    dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
    return torch.empty(*shape, device=weight.device, dtype=dtype)
