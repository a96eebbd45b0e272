"""RepAdapter (Luo et al., 2023): a linear bottleneck before frozen layers, which becomes part of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.adapted import Adapted, Product, dropout_of, empty_like_weight
from capaboost_core.errors import UserError
from capaboost_core.first_values import FirstValues
from capaboost_core.mergeable import Mergeable
from capaboost_core.methods.base import Method
from capaboost_core.methods.registry import register_method
from capaboost_core.plan import Plan, Target
from capaboost_core.roles import Roles
from capaboost_core.settings.base import refuse


class LinearBottleneck(FirstValues):
    """scale * (U dropout(D x + c) + e), U in diagonal blocks; D starts with Xavier's bound, all else at zero."""

    def __init__(self, config: RepAdapter, weight: Tensor):
        super().__init__()
        width, groups = weight.shape[1], config.groups
        self.down = nn.Parameter(empty_like_weight(weight, config.r, width))
        self.down_bias = nn.Parameter(empty_like_weight(weight, config.r))
        self.up = nn.Parameter(empty_like_weight(weight, groups, width // groups, config.r // groups))
        self.up_bias = nn.Parameter(empty_like_weight(weight, width))
        self.scale, self.dropout = config.scale, dropout_of(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.down)
        for parameter in (self.down_bias, self.up, self.up_bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., width)."""
        down, c, up, e = (p.to(x.dtype) for p in (self.down, self.down_bias, self.up, self.up_bias))
        hidden = self.dropout(F.linear(x, down, c)).unflatten(-1, (len(up), -1))
        wide = (up @ hidden.unsqueeze(-1)).flatten(-3)
        return self.scale * (wide + e).to(x.dtype)

    def matrix(self) -> Tensor:
        """What it multiplies x by, (width, width)."""
        return self.scale * torch.block_diag(*self.up) @ self.down

    def constant(self) -> Tensor:
        """What it adds for any x, (width)."""
        return self.scale * (torch.block_diag(*self.up) @ self.down_bias + self.up_bias)


class RepLinear(Mergeable, nn.Linear):
    """W (x + bottleneck(x)) + b; merged it is a layer with W (I + scale U D) and b + scale W (U c + e).

    Args:
        base: The frozen layer to adopt.
        config: The method's configuration.
        target: Path of the layer.
    """

    def __init__(self, base: nn.Linear, config: RepAdapter, target: Target):
        self.adopt(base, target.path)
        if base.bias is None:
            self.mergeable, self.obstacle = False, f"a shift for {target.path}, which has no bias,"
        self.allow_merging()

    def give(self, bottleneck: LinearBottleneck) -> None:
        """Have the bottleneck, in a tuple: of the layers that read one input the first alone registers it."""
        self.shared = (bottleneck,)
        self.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        sums = self.current_sums() if self.enabled else None
        if sums is not None:
            return F.linear(x, sums.weight, sums.bias)
        return super().forward(x + self.shared[0](x) if self.enabled else x)

    def summed(self) -> tuple[Tensor, Tensor]:
        (bottleneck,), weight = self.shared, self.weight.to(self.shared[0].down.dtype)
        bias = self.bias + weight @ bottleneck.constant()
        return (weight + weight @ bottleneck.matrix()).to(self.weight.dtype), bias.to(self.bias.dtype)

    def products(self, needs_gradient: bool) -> list[Product]:
        (bottleneck,) = self.shared
        sizes = ((bottleneck.down.numel(), needs_gradient), (bottleneck.up.numel(), True))
        return [Product(size, size, bottleneck.down.requires_grad, needed) for size, needed in sizes]


@register_method("repadapter")
class RepAdapter(Method):
    """x + scale * (U dropout(D x + c) + e) in place of what attention and feed-forward part read, U in groups.

    Where q, k and v are apart, they read the same: one bottleneck for the three. Places, groups, dropout, width, scale
    and first values are those of the authors' code (luogen1996/RepAdapter repadapter.py:21-24, 147-172, 223-230,
    train.py:79 at 360992f), which takes a scale of 0.1 to 10 by the task.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: RepLinear}
    wanted: ClassVar[str] = "nn.Linear"
    budget: ClassVar[str | None] = "r"

    r: int = Field(8, ge=1, le=65536, description="Width of one bottleneck.")
    groups: int = Field(2, ge=1, description="Groups of U, each from a share of the hidden values.")
    scale: float = Field(1.0, gt=0, description="The bottleneck's output is scaled by it.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Probability of dropping a hidden value in training.")

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.r % self.groups:
            refuse("groups", self.groups, f"they share out the {self.r} hidden values; type a divisor of r")
        return self

    @property
    def budget_step(self) -> int:
        return self.groups

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """What reads the inputs: q, k, v and f1."""
        return Plan(roles.targets(("q", "k", "v", "f1"), whole=True), roles.head, roles.switches)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """One bottleneck for the layers below each module: they read the same input."""
        layers, owners = super().make_layers(modules, plan), {}
        for path, layer in layers.items():
            if (width := layer.in_features) % self.groups:
                raise UserError(f"groups is {self.groups}, but {path} reads {width} values; type a divisor of that")
            owner = owners.setdefault(path.rpartition(".")[0], layer)
            if owner is layer:
                owner.bottleneck = LinearBottleneck(self, layer.weight)
            layer.give(owner.bottleneck)
        return layers
