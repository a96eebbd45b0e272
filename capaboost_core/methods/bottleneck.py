"""CapaBoost adapters: tied bottlenecks after a frozen linear layer or its dropout, or inside a residual norm."""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Adapted, dropout_of, empty_like_weight
from capaboost_core.errors import UserError
from capaboost_core.first_values import FirstValues
from capaboost_core.methods.adapter_settings import AdapterSettings
from capaboost_core.plan import Target
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight

ACTIVATION = {"relu": F.relu, "swish": F.silu, "gelu": F.gelu}


class Bottleneck(FirstValues):
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
        self.num_tied, self.scaling, self.bias_scale = config.num_tied, config.scale, config.bias_scale
        self.dropout, self.activation = dropout_of(config.dropout), ACTIVATION[config.activation]

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.down_bias)
        nn.init.zeros_(self.up_bias)

    def forward(self, h: Tensor) -> Tensor:
        """h (..., width) -> (..., width)."""
        return self.widen(self.activation(self.narrow(self.dropout(h))))

    def narrow(self, h: Tensor) -> Tensor:
        """(..., width) -> (..., d*r), the hidden values of all copies."""
        down = self.down.copies().flatten(0, 1)
        return F.linear(h, down.to(h.dtype), self.down_bias.repeat(self.num_tied).to(h.dtype))

    def widen(self, hidden: Tensor) -> Tensor:
        """(..., d*r) -> (..., width), scaled."""
        up, bias = self.scaling * self.up.copies().flatten(0, 1).T, self.bias_scale * self.up_bias
        return F.linear(hidden, up.to(hidden.dtype), bias.to(hidden.dtype))


class AdapterLinear(Adapted, nn.Linear):
    """Linear layer h = x W^T + b, then h + bottleneck(h).

    Where a block adds its residual after the norm (timm's ViTs), PAdapter follows the feed-forward part
    and HAdapter the attention's output as well; Houlsby et al. (2019) place it so in any encoder.

    Args:
        base: The frozen layer to adopt.
        config: The adapter's configuration.
        target: Path of the layer.
    """

    def __init__(self, base: nn.Linear, config: AdapterSettings, target: Target):
        self.adopt(base, target.path)
        self.adapter = Bottleneck(config, target.path, base.out_features, base.weight)
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        h = F.linear(x, self.weight, self.bias)
        return h + self.adapter(h) if self.enabled else h


class AdapterNorm(Adapted, nn.LayerNorm):
    """Layer norm of a residual sum s, then norm(s + bottleneck(norm(s))) with the same frozen norm twice.

    That is Pfeiffer et al. (2021) in encoders that norm after the sum, s = h + x, as the authors' code
    has it: y = adapter(norm(h + x)) + h, then norm(y + x).

    Args:
        base: The frozen norm to adopt.
        config: The adapter's configuration.
        target: Path of the norm.
    """

    def __init__(self, base: nn.LayerNorm, config: AdapterSettings, target: Target):
        self.adopt(base, target.path)
        self.adapter = Bottleneck(config, target.path, base.normalized_shape[-1], base.weight)
        self.train(base.training)

    def forward(self, s: Tensor) -> Tensor:
        """s (..., width) -> (..., width)."""
        normed = super().forward(s)
        return super().forward(s + self.adapter(normed)) if self.enabled else normed


class AdapterDropout(Adapted, nn.Dropout):
    """Dropout z = dropout(h) of a layer's output, then z + bottleneck(z).

    That is Houlsby et al. (2019) as adapter-transformers and AdaLoRA's code have it.

    Args:
        base: The dropout to adopt.
        config: The adapter's configuration.
        target: Path of the dropout.
        linear: The layer that the dropout follows.

    Raises:
        UserError: If the target does not name that layer.
    """

    def __init__(self, base: nn.Dropout, config: AdapterSettings, target: Target, linear: nn.Linear | None = None):
        if linear is None:
            raise UserError(
                f"target {target.path} is a dropout; name the linear layer that it follows: Target.follows"
            )
        self.adopt(base, target.path)
        self.adapter = Bottleneck(config, target.path, linear.out_features, linear.weight)
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
