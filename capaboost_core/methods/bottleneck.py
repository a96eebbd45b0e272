"""CapaBoost adapters: tied bottlenecks."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Product, dropout_of, empty_like_weight, products_of
from capaboost_core.methods.parameters import Filled
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight

if TYPE_CHECKING:
    from capaboost_core.methods.adapter_settings import AdapterSettings

ACTIVATION = {"relu": F.relu, "swish": F.silu, "gelu": F.gelu}


class Bottleneck(Filled):
    """alpha/r * (sum_i f(h (D * md_i)^T + c)(U * mu_i)^T + e) with f = `config.activation` (Eq. 5).

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
        down, up = empty_like_weight(weight, config.r, width), empty_like_weight(weight, width, config.r)
        bound = 1 / math.sqrt(width)
        fill_down, fill_up = partial(nn.init.uniform_, a=-bound, b=bound), nn.init.zeros_
        if config.init == "official":
            fill_down = fill_up = partial(nn.init.normal_, std=0.02)
        self.down = TiedWeight(config, mask_bits(config, path, "down", down.shape), fill_down(down), fill_down)
        self.up = TiedWeight(config, mask_bits(config, path, "up", up.shape).T, fill_up(up).T, fill_up)
        self.down_bias = nn.Parameter(empty_like_weight(weight, config.r))
        self.up_bias = nn.Parameter(empty_like_weight(weight, width))
        self.reset_parameters()
        self.num_tied, self.scaling = config.num_tied, config.scaling
        self.dropout, self.activation = dropout_of(config.dropout), ACTIVATION[config.activation]

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.down_bias)
        nn.init.zeros_(self.up_bias)

    def forward(self, h: Tensor) -> Tensor:
        """h (..., width) -> (..., width)."""
        down = self.down.copies().flatten(0, 1).to(h.dtype)
        up, up_bias = self.scaling * self.up.copies().flatten(0, 1).T, self.scaling * self.up_bias
        hidden = self.activation(F.linear(self.dropout(h), down, self.down_bias.repeat(self.num_tied).to(h.dtype)))
        return F.linear(hidden, up.to(h.dtype), up_bias.to(h.dtype))

    def products(self, needs_gradient: bool) -> list[Product]:
        """Of down, then of up; `Adapted.products` of the layer that it stands in."""
        return products_of([[self.down], [self.up]], needs_gradient)
