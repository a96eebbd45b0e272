"""CapaBoost adapters: tied bottlenecks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Product, dropout_of, empty_like_weight, products_of
from capaboost_core.first_values import FirstValues
from capaboost_core.sharing.borrowing import Borrower
from capaboost_core.sharing.masks import mask_bits

if TYPE_CHECKING:
    from capaboost_core.methods.adapter_settings import AdapterSettings

Filler = Callable[[Tensor], Any]  # fills a tensor in place
ACTIVATION = {"relu": F.relu, "swish": F.silu, "gelu": F.gelu}


class Bottleneck(FirstValues, Borrower):
    """s * sum_i f(h (D * md_i)^T + c)(U * mu_i)^T + alpha/r * e, s = `config.scale`, f = `config.activation` (Eq. 5).

    The bias c (r) of the bottleneck is seen by every copy, the output bias e (width) is added once;
    biases are not masked. The d copies are two products of concatenated factors, as in LoRA.

    Args:
        config: The adapter's configuration; `init="lora"` starts with U = 0, so that the model starts as
            its base, `init="official"` with N(0, 0.02) on both factors.
        path: Module path that keys the masks.
        width: Size of h and of the output.
        weight: A frozen weight, which gives device and precision.
    """

    def __init__(self, config: AdapterSettings, path: str, width: int, weight: Tensor):
        super().__init__()
        bound = 1 / math.sqrt(width)
        fill_down, fill_up = partial(nn.init.uniform_, a=-bound, b=bound), nn.init.zeros_
        if config.init == "official":
            fill_down = fill_up = partial(nn.init.normal_, std=0.02)
        self.downs = self.hidden_sizes(config)
        for name, size in self.downs.items():
            self.make_projection(config, path, name, empty_like_weight(weight, size, width), fill_down)
        self.make_projection(config, path, "up", empty_like_weight(weight, width, config.r), fill_up)
        self.reset_parameters()
        self.num_tied, self.scaling, self.bias_scale = config.num_tied, config.scale, config.bias_scale
        self.dropout, self.activation = dropout_of(config.dropout), ACTIVATION[config.activation]

    def hidden_sizes(self, config: AdapterSettings) -> dict[str, int]:
        """Outputs of each projection of the input."""
        return {"down": config.r}

    def make_projection(self, config: AdapterSettings, path: str, name: str, empty: Tensor, fill: Filler) -> None:
        """Make the weight `name`, of the shape (out, in) of an empty tensor, and its bias."""

        def laid(values: Any) -> Any:
            return values.T if name == "up" else values  # the rank comes first

        def masks() -> np.ndarray:
            return laid(mask_bits(config, path, name, empty.shape))

        setattr(self, name, config.make_weight(name, masks, laid(fill(empty)), fill))
        setattr(self, f"{name}_bias", nn.Parameter(empty.new_empty(len(empty))))

    def reset_parameters(self) -> None:
        for bias in self.parameters(recurse=False):
            nn.init.zeros_(bias)

    def projection(self, name: str) -> tuple[Tensor, Tensor]:
        """The copies of a weight (d, out, in), of `up` (d, in, out), and its bias (out)."""
        return getattr(self, name).copies(), getattr(self, f"{name}_bias")

    def forward(self, h: Tensor) -> Tensor:
        """h (..., width) -> (..., width)."""
        return self.widen(self.activation(self.narrow(self.dropout(h))))

    def narrow(self, h: Tensor) -> Tensor:
        """(..., width) -> (..., d*r), the hidden values of all copies."""
        return self.combine([self._project(h, *self.projection(name)) for name in self.downs])

    def widen(self, hidden: Tensor) -> Tensor:
        """(..., d*r) -> (..., width), scaled."""
        up, bias = self.projection("up")
        up, bias = self.scaling * up.flatten(0, 1).T, self.bias_scale * bias
        return F.linear(hidden, up.to(hidden.dtype), bias.to(hidden.dtype))

    def _project(self, h: Tensor, copies: Tensor, bias: Tensor) -> Tensor:
        """(..., width) -> (..., d * out)."""
        return F.linear(h, copies.flatten(0, 1).to(h.dtype), bias.repeat(self.num_tied).to(h.dtype))

    def combine(self, projections: list[Tensor]) -> Tensor:
        """The hidden values (..., d * r) of the projections of the input."""
        return projections[0]

    def products(self, needs_gradient: bool) -> list[Product]:
        """Of the input's projections, then of up; `Adapted.products` of the layer that it stands in."""
        return products_of([[getattr(self, name) for name in self.downs], [self.up]], needs_gradient)
