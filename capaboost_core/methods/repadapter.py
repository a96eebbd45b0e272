"""RepAdapter (Luo et al., 2023): a linear bottleneck before frozen layers, which becomes part of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, MacCount, Mergeable, dropout_of, empty_like_weight, macs_of
from capaboost_core.methods.method import Method, register_method
from capaboost_core.plan import Plan, Roles, Target
from capaboost_core.settings import refuse
from capaboost_core.sharing.masks import PLAIN, TIED, mask_bits
from capaboost_core.sharing.tied import ResetOnMaterialize, TiedWeight, TyingSettings


class LinearBottleneck(ResetOnMaterialize):
    """scale * (sum_i (U * mu_i) dropout((D * md_i) x + c) + e), U in diagonal blocks.

    D starts with Xavier's bound, all else at zero. The bias c is seen by every copy, e is added once.

    Args:
        config: The method's configuration.
        path: Module path that keys the masks.
        weight: A frozen weight (.., width), which gives device and precision.
    """

    def __init__(self, config: RepAdapter, path: str, weight: Tensor):
        super().__init__()
        width, groups, r = weight.shape[1], config.groups, config.r
        bound = math.sqrt(6 / (r + width))
        fill = partial(nn.init.uniform_, a=-bound, b=bound)
        down, up = mask_bits(config, path, "down", (r, width)), (groups, width // groups, r // groups)
        self.down = TiedWeight(config, down, fill(empty_like_weight(weight, r, width)), fill)
        up = mask_bits(config, path, "up", up).swapaxes(1, 2)  # the rank comes first
        self.up = TiedWeight(config, up, nn.init.zeros_(empty_like_weight(weight, *up.shape)))
        self.down_bias = nn.Parameter(empty_like_weight(weight, r))
        self.up_bias = nn.Parameter(empty_like_weight(weight, width))
        self.scale, self.dropout = config.scale, dropout_of(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for bias in (self.down_bias, self.up_bias):
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., width)."""
        down, up = self.down.copies().to(x.dtype), self.up.copies().to(x.dtype)  # (d, r, width), (groups, d, r, width)
        c, e = self.down_bias.to(x.dtype).repeat(len(down)), self.up_bias.to(x.dtype)
        hidden = self.dropout(F.linear(x, down.flatten(0, 1), c)).unflatten(-1, (len(down), len(up), -1))
        wide = hidden.transpose(-2, -3).flatten(-2).unsqueeze(-2) @ up.flatten(1, 2)
        return self.scale * (wide.flatten(-3) + e).to(x.dtype)

    def wide(self) -> Tensor:
        """The copies of U with its blocks in place, (d, width, r), as evaluation sees them."""
        return torch.stack([torch.block_diag(*copy.mT) for copy in self.up.copies(False).unbind(1)])

    def matrix(self) -> Tensor:
        """What it multiplies x by, (width, width)."""
        return self.scale * (self.wide() @ self.down.copies(False)).sum(0)

    def constant(self) -> Tensor:
        """What it adds for any x, (width)."""
        return self.scale * (self.wide().sum(0) @ self.down_bias + self.up_bias)


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
            self.mergeable, self.not_mergeable_because = False, f"a shift for {target.path}, which has no bias,"
        self.allow_merging()

    def attach_shared(self, bottleneck: LinearBottleneck) -> None:
        """Set the bottleneck, in a tuple: of the layers that read one input only the first registers it as a child."""
        self.shared = (bottleneck,)
        self.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        sums = self.current_merged() if self.enabled else None
        if sums is not None:
            return F.linear(x, sums.weight, sums.bias)
        return super().forward(x + self.shared[0](x) if self.enabled else x)

    def merged_weight(self) -> tuple[Tensor, Tensor]:
        assert self.bias is not None, "a layer without a bias is not mergeable"
        (bottleneck,), weight = self.shared, self.weight.to(self.shared[0].down_bias.dtype)
        bias = self.bias + weight @ bottleneck.constant()
        return (weight + weight @ bottleneck.matrix()).to(self.weight.dtype), bias.to(self.bias.dtype)

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        (bottleneck,) = self.shared
        return macs_of([[bottleneck.down], [bottleneck.up]], needs_gradient)


@register_method("repadapter", capaboost_repadapter=TIED, repadapter=PLAIN)
class RepAdapter(TyingSettings, Method):
    """x + scale * (U dropout(D x + c) + e) in place of what attention and feed-forward part read, U in groups.

    Where q, k and v are apart, they read the same: one bottleneck for the three. Targets, groups, dropout, width,
    scale and initial values are those of the authors' code (luogen1996/RepAdapter repadapter.py:21-24, 147-172,
    223-230, train.py:79 at 360992f), which takes a scale of 0.1 to 10 by the task. Tied, d bottlenecks are masked
    views of one.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: RepLinear}
    wanted: ClassVar[str] = "nn.Linear"
    budget: ClassVar[str | None] = "r"

    r: int = Field(default=8, ge=1, le=65536, description="Width of one bottleneck.")
    groups: int = Field(default=2, ge=1, description="Groups of U, each from a share of the hidden values.")
    scale: float = Field(default=1.0, gt=0, description="The bottleneck's output is scaled by it.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Probability of dropping a hidden value in training.")

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
        return Plan(roles.targets(("q", "k", "v", "f1"), whole=True), roles.head, roles.required_flags)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """One bottleneck for the layers below each module: they read the same input."""
        layers = super().make_layers(modules, plan)
        owners: dict[str, LinearBottleneck] = {}
        for path, layer in layers.items():
            assert isinstance(layer, RepLinear)
            if (width := layer.in_features) % self.groups:
                raise UserError(f"groups is {self.groups}, but {path} reads {width} values; type a divisor of that")
            parent = path.rpartition(".")[0]
            if parent not in owners:
                layer.bottleneck = owners[parent] = LinearBottleneck(self, path, layer.weight)
            layer.attach_shared(owners[parent])
        return layers
