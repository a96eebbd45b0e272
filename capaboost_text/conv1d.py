"""LoRA on transformers' Conv1D, GPT-2's linear layer, which holds its weight as (in, out)."""

from __future__ import annotations

from typing import ClassVar

from transformers.pytorch_utils import Conv1D

from capaboost_core.linear_layers import SHAPES
from capaboost_core.methods.capa_linear import Incremented
from capaboost_core.methods.lora import LoRA


class CapaConv1D(Incremented, Conv1D):
    """Conv1D y = x W + b with W (in, out), plus increments as `CapaLinear` has them.

    Everything sees W^T, a view; the stored weight and its name in the state dict stay the base's.

    Args:
        base: The frozen layer to adopt.
        config: The adapter's configuration.
        target: Path of the layer, and the slices of its output that get an increment each.
    """

    fan_in_fan_out: ClassVar[bool] = True

    @property
    def in_features(self) -> int:
        return self.nx

    @property
    def out_features(self) -> int:
        return self.nf


SHAPES[Conv1D] = lambda layer: (layer.nf, layer.nx)
LoRA.layers[Conv1D] = CapaConv1D
