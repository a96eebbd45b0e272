"""SHiRA's places (Bhardwaj et al., 2024): entries of the weight, drawn for each layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field
from torch import nn

from capaboost_core.draws import draw
from capaboost_core.methods.from_peft.method import FromPeft
from capaboost_core.plan import Target


class SHiRA(FromPeft):
    """r (in + out) entries of each weight. peft itself draws the same places for all layers of one shape."""

    seed: int = Field(0, ge=0, lt=2**64, description="Seed of the places, independent of the run's own.")

    def peft_layers(self, stand_ins: Mapping[Target, nn.Module]) -> dict[Target, nn.Module]:
        from capaboost_core.methods.from_peft.shira_layer import ShiraLinear

        config = self.peft_config()
        return {target: ShiraLinear(layer, self._places(target, layer), config) for target, layer in stand_ins.items()}

    def _places(self, target: Target, layer: nn.Module) -> np.ndarray:
        """Positions in the flat weight, in rising order: those of the smallest draws."""
        drawn = draw(f"{self.seed}/{target.path}/shira", (layer.weight.numel(),))
        return np.sort(np.argsort(drawn, kind="stable")[: self.r * sum(layer.weight.shape)])
