"""FacT (Jie & Deng, 2023): increments of all layers from factors that the layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError
from capaboost_core.linear_layers import linear_shape
from capaboost_core.methods.base import Method
from capaboost_core.methods.fact_layer import FactLinear, Inner, Outer
from capaboost_core.methods.registry import register_method
from capaboost_core.plan import Plan
from capaboost_core.roles import MATRICES, Roles
from capaboost_core.sharing.settings import PLAIN, TIED, Tying


class FacT(Tying, Method):
    """W + scale * V S U, with U (r, width) and V (width, r) for the whole model and an S (r, r) for each matrix.

    The matrices are those of (width, width) that q, k, v, o, f1 and f2 consist of: 12 a block of a ViT, 4 of them in
    f1 and 4 in f2. A size that is no multiple of the width counts as the next one, and what is too much is cut off.

    V starts at zero and U from U(-1/sqrt(width), 1/sqrt(width)). Places, first values, dropout and the scale of 1 are
    those of the authors' code (JieShibo/PETL-ViT FacT/fact_tt.py:60-128, fact_tk.py:59-136 at 026e4f1), which takes a
    scale of 0.01 to 100 by the task. Tied, V and U have d masked views each, with one S between.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: FactLinear}
    wanted: ClassVar[str] = "nn.Linear"
    budget: ClassVar[str | None] = "r"
    core: ClassVar[bool]

    scale: float = Field(1.0, gt=0, description="The increments are scaled by it.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Probability of dropping a value between S and V in training.")

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """The matrices of all blocks.

        Raises:
            UserError: If the blocks differ in width.
        """
        modules = dict(model.named_modules())
        widths = {linear_shape(modules[target.path])[0] for target in roles.targets(("o",))}
        if len(widths) > 1:
            found = ", ".join(map(str, sorted(widths)))
            raise UserError(f"method {self.name} shares factors of one width, but {found} are there; choose lora")
        return Plan(roles.targets(MATRICES, whole=True), roles.head, roles.switches)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        layers = super().make_layers(modules, plan)
        first = next(iter(layers.values()))
        width = first.in_features
        first.outer = outer = Outer(self, first.path, width, first.weight)
        pieces = {path: tuple(-(-size // width) for size in layer.weight.shape) for path, layer in layers.items()}
        total = sum(n * m for n, m in pieces.values())
        for path, layer in layers.items():
            layer.give(outer, Inner(*self.inner(*pieces[path], total), layer.weight), pieces[path])
        return layers

    def inner(self, n: int, m: int, total: int) -> tuple[int, int, float]:
        """Rows, columns and first bound of what a layer of n * m matrices has of its own, of `total` in the model."""
        raise NotImplementedError


@register_method("fact-tt", capaboost_fact_tt=TIED, fact_tt=PLAIN)
class FacTTT(FacT):
    """Tensor train: S is trained itself, from U(-1/sqrt(m r), 1/sqrt(m r)) where m pieces of the input meet in it."""

    core: ClassVar[bool] = False

    r: int = Field(16, ge=1, le=65536, description="Rank of the increment of each matrix.")

    def inner(self, n: int, m: int, total: int) -> tuple[int, int, float]:
        return n * self.r, m * self.r, 1 / math.sqrt(m * self.r)


@register_method("fact-tk", capaboost_fact_tk=TIED, fact_tk=PLAIN)
class FacTTK(FacT):
    """Tucker: S is a sum of the slices of a core (r, r, r), shared too, with r weights for each matrix.

    Core and weights start with Xavier's bounds, the weights' as one matrix (r, matrices).
    """

    core: ClassVar[bool] = True

    r: int = Field(32, ge=1, le=1024, description="Rank of the increment of each matrix.")

    def inner(self, n: int, m: int, total: int) -> tuple[int, int, float]:
        return n * m, self.r, math.sqrt(6 / (self.r + total))
