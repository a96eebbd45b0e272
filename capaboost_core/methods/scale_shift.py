"""A trained scale and shift of every output of a frozen layer, which its weight and bias can hold."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Adapted, empty_like_weight
from capaboost_core.first_values import FirstValues
from capaboost_core.mergeable import Mergeable
from capaboost_core.methods.base import Method
from capaboost_core.plan import Target


class ScaleShift(FirstValues):
    """scale * y + shift along the last dimension but `after`."""

    def __init__(self, weight: Tensor, spread: float, after: int):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(empty_like_weight(weight, len(weight))) for _ in range(2))
        self.spread, self.after = spread, after
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scale, 1.0, self.spread)
        nn.init.normal_(self.shift, 0.0, self.spread)

    def forward(self, y: Tensor) -> Tensor:
        scale, shift = (p.to(y.dtype).view(-1, *(1,) * self.after) for p in (self.scale, self.shift))
        return scale * y + shift


class ScaleShiftLayer(Mergeable):
    """scale * layer(x) + shift, with an entry of both for each output or channel of the frozen layer.

    Merged, it is the layer with the weight scale * W and the bias scale * b + shift.

    Args:
        base: The frozen layer to adopt.
        config: The method's configuration.
        target: Path of the layer.
    """

    after: ClassVar[int] = 0  # dimensions of the output behind the channels

    def __init__(self, base: nn.Module, config: ScaleShiftMethod, target: Target):
        self.adopt(base, target.path)
        self.scale_shift = ScaleShift(base.weight, config.spread, self.after)
        if base.bias is None:
            self.mergeable, self.obstacle = False, f"a shift for {target.path}, which has no bias,"
        self.allow_merging()
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x as for the frozen layer."""
        sums = self.current_sums() if self.enabled else None
        if sums is not None:
            return self.compute(x, sums.weight, sums.bias)
        y = super().forward(x)
        return self.scale_shift(y) if self.enabled else y

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the frozen layer's class computes with a weight and a bias."""
        raise NotImplementedError

    def summed(self) -> tuple[Tensor, Tensor]:
        scale, shift = self.scale_shift.scale, self.scale_shift.shift
        weight = scale.view(-1, *(1,) * (self.weight.ndim - 1)) * self.weight
        return weight.to(self.weight.dtype), (scale * self.bias + shift).to(self.bias.dtype)


class ScaleShiftLinear(ScaleShiftLayer, nn.Linear):
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class ScaleShiftConv2d(ScaleShiftLayer, nn.Conv2d):
    after: ClassVar[int] = 2

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class ScaleShiftNorm(ScaleShiftLayer, nn.LayerNorm):
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class ScaleShiftMethod(Method):
    """A method of such layers.

    Attributes:
        spread: Standard deviation of the first values around a scale of 1 and a shift of 0.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {
        nn.Linear: ScaleShiftLinear,
        nn.Conv2d: ScaleShiftConv2d,
        nn.LayerNorm: ScaleShiftNorm,
    }
    wanted: ClassVar[str] = "nn.Linear, nn.Conv2d or nn.LayerNorm"
    spread: ClassVar[float] = 0.0
