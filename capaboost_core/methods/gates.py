"""UniPELT's gates, and additions that they multiply."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Product, empty_like_weight
from capaboost_core.first_values import FirstValues
from capaboost_core.methods.bottleneck import Bottleneck
from capaboost_core.methods.capa_linear import CapaLinear
from capaboost_core.methods.fused import increments
from capaboost_core.methods.prefix_layer import Prefix
from capaboost_core.methods.scaled import Scaled
from capaboost_core.plan import Target


class Gate(FirstValues):
    """mean over tokens of sigmoid(x G^T + g): for each example a number in (0, 1) for each of `size` additions.

    G starts as N(0, 0.02), as BERT's layers do, so that a gate starts at about one half (Mao et al., 2022, arXiv
    2110.07577; morningmoni/UniPELT lora_layers.py:166-169, transformers/adapters/modeling.py:121-127@53d3c35).

    Args:
        size: Number of gates.
        width: Size of x.
        weight: A frozen weight, which gives device and precision.
    """

    def __init__(self, size: int, width: int, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(empty_like_weight(weight, size, width))
        self.bias = nn.Parameter(empty_like_weight(weight, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, .., width) -> (batch, 1.., size)."""
        gates = F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)).sigmoid()
        tokens = tuple(range(1, x.ndim - 1))
        return gates.mean(tokens, keepdim=True) if tokens else gates

    def products(self, needs_gradient: bool) -> list[Product]:
        entries = self.weight.numel()
        return [Product(entries, entries, self.weight.requires_grad, needs_gradient)]


class GatedLinear(CapaLinear):
    """x W^T + b, plus gate * sum_i x (A * ma_i)^T (B * mb_i)^T on each slice, with a gate in place of alpha / r."""

    mergeable: ClassVar[bool] = False
    low_rank: ClassVar[bool] = False
    obstacle: ClassVar[str] = "a gate that depends on the input"

    def __init__(self, base: nn.Linear, config: Scaled, target: Target):
        super().__init__(base, config, target)
        self.gate = Gate(len(self.slices), self.in_features, base.weight)
        self.gate.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, .., in) -> (batch, .., out)."""
        out = F.linear(x, self.matrix, self.bias)
        if self.disabled:
            return out
        a, b = self.factors()
        hidden = F.linear(self.dropout(x), a.to(x.dtype)).unflatten(-1, (len(self.slices), -1))
        hidden = (hidden * self.gate(x).unsqueeze(-1)).flatten(-2).flatten(0, -2)
        return out + increments(hidden, b.to(hidden.dtype), self.slices, self.out_features).view(out.shape)

    def products(self, needs_gradient: bool) -> list[Product]:
        return [*super().products(needs_gradient), *self.gate.products(needs_gradient)]


class GatedBottleneck(Bottleneck):
    """gate * bottleneck."""

    def __init__(self, config: Any, path: str, width: int, weight: Tensor):
        super().__init__(config, path, width, weight)
        self.gate = Gate(1, width, weight)

    def forward(self, h: Tensor) -> Tensor:
        """h (batch, .., width) -> the same shape."""
        return self.gate(h) * super().forward(h)

    def products(self, needs_gradient: bool) -> list[Product]:
        return [*super().products(needs_gradient), *self.gate.products(needs_gradient)]


class GatedPrefix(Prefix):
    """A prefix whose keys and values a gate multiplies, before the softmax."""

    def __init__(self, config: Any, path: str, width: int, weight: Tensor):
        super().__init__(config, path, width, weight)
        self.gate = Gate(1, weight.shape[-1], weight)

    def gate_of(self, x: Tensor) -> Tensor:
        return self.gate(x).view(-1, 1, 1, 1)

    def products(self, needs_gradient: bool) -> list[Product]:
        return [*super().products(needs_gradient), *self.gate.products(needs_gradient)]
