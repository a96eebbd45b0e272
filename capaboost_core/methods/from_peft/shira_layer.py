"""peft's SHiRA layer with a dense sum of weights; a file of its own, since importing it needs peft.

peft's own sum is sparse, which has no kernel on the meta device, and a cache in its forward keeps every layer alive.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from peft import ShiraConfig
from peft.tuners.shira.layer import Linear
from torch import Tensor, nn

from capaboost_core.methods.from_peft.method import ADAPTER


class ShiraLinear(Linear):
    """x (W + S)^T + b, where S has trained values at fixed positions and is zero elsewhere.

    Args:
        base: nn.Linear.
        places: Positions of the values in the flat weight.
        config: peft's.

    Raises:
        ValueError: If there are more values than the weight has entries.
        TypeError: If the base is another layer, as in peft.
    """

    in_features: int
    out_features: int
    base_layer: nn.Linear
    places: Tensor

    def __init__(self, base: nn.Module, places: np.ndarray, config: ShiraConfig):
        if not isinstance(base, nn.Linear):
            raise TypeError(f"SHiRA takes nn.Linear, not {type(base).__name__}")
        super().__init__(base, None, ADAPTER, config=config, r=config.r)
        self.register_buffer("places", torch.from_numpy(places).to(base.weight.device), persistent=False)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """S, dense."""
        values = self.shira_weight[adapter] * self.scaling[adapter]
        flat = values.new_zeros(self.out_features * self.in_features).index_copy(0, self.places, values)
        return flat.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base_layer.weight
        return F.linear(x, (weight + self.get_delta_weight(ADAPTER)).to(weight.dtype), self.base_layer.bias)
