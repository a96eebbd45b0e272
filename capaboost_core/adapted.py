"""A frozen linear layer that carries a trainable addition: what LoRA and the adapters have in common."""

from __future__ import annotations

import torch
from torch import nn

from capaboost_core.config import CapaBoostConfig
from capaboost_core.plan import Target
from capaboost_core.tied import TiedWeight


class AdaptedLinear(nn.Linear):
    """Adopts weight and bias of a linear layer, so that the base model's state-dict keys stay as they are.

    Args:
        base: The layer to adopt; it shares its parameters with this one.
        config: The adapter's configuration.
        target: Path and output slices of the layer.
    """

    def __init__(self, base: nn.Linear, config: CapaBoostConfig, target: Target):
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.path = target.path
        self.num_tied, self.scaling = config.num_tied, config.scaling
        self.enabled = True
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of the addition, without the adopted weight and bias."""
        return {name: p for name, p in self.named_parameters() if name not in ("weight", "bias")}

    def tied_weights(self) -> dict[str, TiedWeight]:
        return {name: module for name, module in self.named_modules() if isinstance(module, TiedWeight)}

    def _dense(self, *shape: int) -> torch.Tensor:
        """An empty trainable matrix beside the weight; single precision even where the base has half."""
        dtype = self.weight.dtype if self.weight.dtype == torch.float64 else torch.float32
        return torch.empty(*shape, device=self.weight.device, dtype=dtype)
