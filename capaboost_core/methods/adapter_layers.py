"""The places of adapters: after a frozen linear layer or its dropout, or inside a residual norm."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Adapted, Product
from capaboost_core.errors import UserError
from capaboost_core.plan import Target


class AdapterMaker(Protocol):
    """What a layer with an adapter asks of its method's settings."""

    def make_adapter(self, path: str, width: int, weight: Tensor) -> nn.Module:
        """A module (..., width) -> (..., width) with `products`, on the device of a frozen weight.

        Args:
            path: Module path of the layer that it stands in.
            width: Size of what it adds to.
            weight: A frozen weight.
        """


class AdapterLayer(Adapted):
    """A frozen layer with a module `adapter`, whose output is added to what the layer computes."""

    adapter: nn.Module

    def products(self, needs_gradient: bool) -> list[Product]:
        return self.adapter.products(needs_gradient)


class AdapterLinear(AdapterLayer, nn.Linear):
    """Linear layer h = x W^T + b, then h + adapter(h).

    Where a block adds its residual after the norm (timm's ViTs), PAdapter follows the feed-forward part
    and HAdapter the attention's output as well; Houlsby et al. (2019) place it so in any encoder.

    Args:
        base: The frozen layer to adopt.
        config: Makes the adapter.
        target: Path of the layer.
    """

    def __init__(self, base: nn.Linear, config: AdapterMaker, target: Target):
        self.adopt(base, target.path)
        self.adapter = config.make_adapter(target.path, base.out_features, base.weight)
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        h = F.linear(x, self.weight, self.bias)
        return h + self.adapter(h) if self.enabled else h


class AdapterNorm(AdapterLayer, nn.LayerNorm):
    """Layer norm of a residual sum s, then norm(s + adapter(norm(s))) with the same frozen norm twice.

    That is Pfeiffer et al. (2021) in encoders that norm after the sum, s = h + x, as the authors' code
    has it: y = adapter(norm(h + x)) + h, then norm(y + x).

    Args:
        base: The frozen norm to adopt.
        config: Makes the adapter.
        target: Path of the norm.
    """

    def __init__(self, base: nn.LayerNorm, config: AdapterMaker, target: Target):
        self.adopt(base, target.path)
        self.adapter = config.make_adapter(target.path, base.normalized_shape[-1], base.weight)
        self.train(base.training)

    def forward(self, s: Tensor) -> Tensor:
        """s (..., width) -> (..., width)."""
        normed = super().forward(s)
        return super().forward(s + self.adapter(normed)) if self.enabled else normed


class AdapterDropout(AdapterLayer, nn.Dropout):
    """Dropout z = dropout(h) of a layer's output, then z + adapter(z).

    That is Houlsby et al. (2019) as adapter-transformers and AdaLoRA's code have it.

    Args:
        base: The dropout to adopt.
        config: Makes the adapter.
        target: Path of the dropout.
        linear: The layer that the dropout follows.

    Raises:
        UserError: If the target does not name that layer.
    """

    def __init__(self, base: nn.Dropout, config: AdapterMaker, target: Target, linear: nn.Linear | None = None):
        if linear is None:
            raise UserError(
                f"target {target.path} is a dropout; name the linear layer that it follows: Target.follows"
            )
        self.adopt(base, target.path)
        self.adapter = config.make_adapter(target.path, linear.out_features, linear.weight)
        self.train(base.training)

    def forward(self, h: Tensor) -> Tensor:
        """h (..., width) -> (..., width)."""
        z = super().forward(h)
        return z + self.adapter(z) if self.enabled else z


ADAPTERS: dict[type[nn.Module], type[Adapted]] = {
    nn.Linear: AdapterLinear,
    nn.LayerNorm: AdapterNorm,
    nn.Dropout: AdapterDropout,
}
