"""FacT (Jie & Deng, 2023): increments of all layers from factors that the layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, MacCount, Mergeable, dropout_of, empty_like_weight
from capaboost_core.methods.method import Method, register_method
from capaboost_core.plan import MATRICES, Plan, Roles, Target, linear_shape
from capaboost_core.sharing.masks import PLAIN, TIED, mask_bits
from capaboost_core.sharing.tied import ResetOnMaterialize, TiedWeight, TyingSettings


class Outer(ResetOnMaterialize):
    """What all layers share: tied U (r, width) and V^T (r, width), and with `core` Tucker's core C (r, r, r)."""

    core: nn.Parameter | None

    def __init__(self, config: FacT, path: str, width: int, weight: Tensor):
        super().__init__()
        r, bound = config.r, 1 / math.sqrt(width)
        fill = partial(nn.init.uniform_, a=-bound, b=bound)
        empty = empty_like_weight(weight, r, width)
        self.v = TiedWeight(config, mask_bits(config, path, "v", (width, r)).T, torch.zeros_like(empty))
        self.u = TiedWeight(config, mask_bits(config, path, "u", (r, width)), fill(empty), fill)
        core = nn.Parameter(empty_like_weight(weight, r, r, r)) if config.core else None
        self.register_parameter("core", core)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.core is not None:
            nn.init.xavier_uniform_(self.core)


class Inner(ResetOnMaterialize):
    """The parameters of one layer, from U(-bound, bound).

    Without a core that is its matrices S themselves, as (n * r, m * r); with one a weight for each slice of the core
    in each of the n * m matrices, as (n * m, r).
    """

    def __init__(self, rows: int, columns: int, bound: float, weight: Tensor):
        super().__init__()
        self.s, self.bound = nn.Parameter(empty_like_weight(weight, rows, columns)), bound
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.s, -self.bound, self.bound)


class FactLinear(Mergeable, nn.Linear):
    """x W^T + b + scale * increment(x), for a W of n * m matrices (width, width) side by side.

    Each of the m pieces of x goes through U to r values, these m * r through S to n * r, and each r of these through
    V to one of the n pieces of the output. With d masked views of U and V a matrix gets sum_i (V * mv_i) S (U * mu_i),
    of rank d * r.

    Args:
        base: The frozen layer to adopt.
        config: The method's configuration.
        target: Path of the layer.

    Attributes:
        pieces: n and m.
    """

    def __init__(self, base: nn.Linear, config: FacT, target: Target):
        self.adopt(base, target.path)
        self.scale, self.dropout = config.scale, dropout_of(config.dropout)
        self.allow_merging()

    def attach_shared(self, outer: Outer, inner: Inner, pieces: tuple[int, int]) -> None:
        """Set the factors; the shared ones in a tuple, since only the first layer registers them as a child."""
        self.shared, self.inner, self.pieces = (outer,), inner, pieces
        self.train(self.training)

    def matrices(self) -> Tensor:
        """S as (n * r, m * r)."""
        (outer,) = self.shared
        if outer.core is None:
            return self.inner.s
        mixed = torch.einsum("abc,kc->kab", outer.core, self.inner.s)
        return mixed.unflatten(0, self.pieces).transpose(1, 2).flatten(2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        sums = self.current_merged() if self.enabled else None
        if sums is not None:
            return F.linear(x, sums.weight, self.bias)
        y = super().forward(x)
        return y + self.scale * self.increment(x).to(y.dtype) if self.enabled else y

    def increment(self, x: Tensor) -> Tensor:
        """The increment's product with x (..., in), without the scale."""
        (outer,), (n, m) = self.shared, self.pieces
        u, s, v = (factor.to(x.dtype) for factor in (outer.u.copies(), self.matrices(), outer.v.copies()))
        x = F.pad(x, (0, m * u.shape[-1] - self.in_features)).unflatten(-1, (m, -1))
        pieces = F.linear(x, u.flatten(0, 1)).unflatten(-1, (len(u), -1)).transpose(-2, -3).flatten(-2)
        hidden = self.dropout(F.linear(pieces, s)).unflatten(-1, (n, -1)).transpose(-2, -3).flatten(-2)
        return (hidden @ v.flatten(0, 1)).flatten(-2)[..., : self.out_features]

    def merged_weight(self) -> tuple[Tensor, None]:
        (outer,), (n, m) = self.shared, self.pieces
        s = self.matrices().unflatten(0, (n, -1)).unflatten(2, (m, -1))
        u, v = outer.u.copies(False), outer.v.copies(False)
        delta = torch.einsum("dro,nrms,dsi->nomi", v, s, u).flatten(2).flatten(0, 1)
        increment = self.scale * delta[: self.out_features, : self.in_features]
        return (self.weight + increment).to(self.weight.dtype), None

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """The products with U, S and V; that of the core does not depend on the rows."""
        (outer,), (n, m) = self.shared, self.pieces
        u, v, s = outer.u, outer.v, outer.u.num_tied * n * m * outer.u.bits.shape[0] ** 2
        return [
            MacCount(m * u.executed, m * u.kept, u.trains, needs_gradient),
            MacCount(s, s, self.inner.s.requires_grad, True),
            MacCount(n * v.executed, n * v.kept, v.trains, True),
        ]


class FacT(TyingSettings, Method):
    """W + scale * V S U, with U (r, width) and V (width, r) for the whole model and an S (r, r) for each matrix.

    The matrices are those of (width, width) that q, k, v, o, f1 and f2 consist of: 12 a block of a ViT, 4 of them in
    f1 and 4 in f2. A size that is no multiple of the width counts as the next one, and what is too much is cut off.

    V starts at zero and U from U(-1/sqrt(width), 1/sqrt(width)). Targets, initial values, dropout and the scale of 1
    are those of the authors' code (JieShibo/PETL-ViT FacT/fact_tt.py:60-128, fact_tk.py:59-136 at 026e4f1), which
    takes a scale of 0.01 to 100 by the task. Tied, V and U have d masked views each, with one S between.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: FactLinear}
    wanted: ClassVar[str] = "nn.Linear"
    budget: ClassVar[str | None] = "r"
    core: ClassVar[bool]
    if TYPE_CHECKING:
        r: int  # the subclasses declare it with their defaults

    scale: float = Field(default=1.0, gt=0, description="The increments are scaled by it.")
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Probability of dropping a value between S and V in training."
    )

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """The matrices of all blocks.

        Raises:
            UserError: If the blocks differ in width.
        """
        modules = dict(model.named_modules())
        shapes = [linear_shape(modules[target.path]) for target in roles.targets(("o",))]
        widths = {shape[0] for shape in shapes if shape}
        if len(widths) > 1:
            found = ", ".join(map(str, sorted(widths)))
            raise UserError(f"method {self.name} shares factors of one width, but {found} are there; choose lora")
        return Plan(roles.targets(MATRICES, whole=True), roles.head, roles.required_flags)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        layers = super().make_layers(modules, plan)
        linears = [cast(FactLinear, layer) for layer in layers.values()]
        first, width = linears[0], linears[0].in_features
        first.outer = outer = Outer(self, first.path, width, first.weight)
        pieces = [(-(-layer.out_features // width), -(-layer.in_features // width)) for layer in linears]
        total = sum(n * m for n, m in pieces)
        for layer, (n, m) in zip(linears, pieces, strict=True):
            layer.attach_shared(outer, Inner(*self.inner(n, m, total), layer.weight), (n, m))
        return layers

    def inner(self, n: int, m: int, total: int) -> tuple[int, int, float]:
        """Rows, columns and initial bound of `Inner` for a layer of n * m matrices, of `total` in the model."""
        raise NotImplementedError


@register_method("fact-tt", capaboost_fact_tt=TIED, fact_tt=PLAIN)
class FacTTT(FacT):
    """Tensor train: S is trained itself, from U(-1/sqrt(m r), 1/sqrt(m r)) where m pieces of the input meet in it."""

    core: ClassVar[bool] = False

    r: int = Field(default=16, ge=1, le=65536, description="Rank of the increment of each matrix.")

    def inner(self, n: int, m: int, total: int) -> tuple[int, int, float]:
        return n * self.r, m * self.r, 1 / math.sqrt(m * self.r)


@register_method("fact-tk", capaboost_fact_tk=TIED, fact_tk=PLAIN)
class FacTTK(FacT):
    """Tucker: S is a sum of the slices of a core (r, r, r), shared too, with r weights for each matrix.

    Core and weights start with Xavier's bounds, the weights' as one matrix (r, matrices).
    """

    core: ClassVar[bool] = True

    r: int = Field(default=32, ge=1, le=1024, description="Rank of the increment of each matrix.")

    def inner(self, n: int, m: int, total: int) -> tuple[int, int, float]:
        return n * m, self.r, math.sqrt(6 / (self.r + total))
