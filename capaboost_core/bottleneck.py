"""CapaBoost adapters: tied bottlenecks after a frozen linear layer."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import AdaptedLinear
from capaboost_core.config import CapaBoostConfig
from capaboost_core.plan import Target
from capaboost_core.tied import TiedWeight


class AdapterLinear(AdaptedLinear):
    """Linear layer h = x W^T + b, then h + alpha/r * (sum_i f(h (D * md_i)^T + c)(U * mu_i)^T + e) (Eq. 5).

    f is ReLU. The bias c (r) of the bottleneck is seen by every copy, the output bias e (out) is added
    once; biases are not masked. The d copies are two products of concatenated factors, as in LoRA.
    PAdapter (Pfeiffer et al., 2021) follows the feed-forward part, HAdapter (Houlsby et al., 2019) the
    attention as well.

    Args:
        base: The frozen layer to adopt.
        config: The adapter's configuration; `init="lora"` starts with U = 0, so the output starts as
            the base's, `init="official"` with N(0, 0.02) on both factors.
        target: Path of the layer.
    """

    def __init__(self, base: nn.Linear, config: CapaBoostConfig, target: Target):
        super().__init__(base, config, target)
        down, up = self._dense(config.r, self.out_features), self._dense(self.out_features, config.r)
        if config.init == "lora":
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            nn.init.zeros_(up)
        else:
            nn.init.normal_(down, std=0.02)
            nn.init.normal_(up, std=0.02)
        self.adapter_down = TiedWeight(config, target.path, "down", down)
        self.adapter_up = TiedWeight(config, target.path, "up", up)
        self.adapter_down_bias = nn.Parameter(nn.init.zeros_(self._dense(config.r)))
        self.adapter_up_bias = nn.Parameter(nn.init.zeros_(self._dense(self.out_features)))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        h = F.linear(x, self.weight, self.bias)
        if not self.enabled:
            return h
        down = self.adapter_down.copies().flatten(0, 1).to(h.dtype)
        up = self.adapter_up.copies().transpose(0, 1).flatten(1).to(h.dtype)
        bias = self.adapter_down_bias.repeat(self.num_tied).to(h.dtype)
        hidden = F.relu(F.linear(self.dropout(h), down, bias))
        return h + self.scaling * F.linear(hidden, up, self.adapter_up_bias.to(h.dtype))
