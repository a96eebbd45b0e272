"""LoRA and methods of peft on transformers' Conv1D, GPT-2's linear layer, which holds its weight as (in, out)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from capaboost_core.linear_layers import SHAPES
from capaboost_core.methods.capa_linear import Incremented
from capaboost_core.methods.from_peft.layer import PeftLayer
from capaboost_core.methods.from_peft.method import FromPeft
from capaboost_core.methods.lora import LoRA


class Transposed(Conv1D):
    """Conv1D y = x W + b with W (in, out), in the terms of `nn.Linear`.

    An adapted layer sees W^T, a view; the stored weight and its name in the state dict stay the base's.
    """

    @property
    def in_features(self) -> int:
        return self.nx

    @property
    def out_features(self) -> int:
        return self.nf


class CapaConv1D(Incremented, Transposed):
    """Conv1D with increments as `CapaLinear` has them."""

    fan_in_fan_out: ClassVar[bool] = True

    @property
    def matrix(self) -> Tensor:
        return self.weight.T


class PeftConv1D(PeftLayer, Transposed):
    """Conv1D with an addition of peft's."""

    fan_in_fan_out: ClassVar[bool] = True


SHAPES[Conv1D] = lambda layer: (layer.nf, layer.nx)
LoRA.layers[Conv1D] = CapaConv1D
FromPeft.layers[Conv1D] = PeftConv1D
