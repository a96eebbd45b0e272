"""The factors of FacT, and the linear layer whose increment is made of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Product, dropout_of, empty_like_weight
from capaboost_core.first_values import FirstValues
from capaboost_core.mergeable import Mergeable
from capaboost_core.plan import Target

if TYPE_CHECKING:
    from capaboost_core.methods.fact import FacT


class Outer(FirstValues):
    """What all layers share: U (r, width) and V (width, r), and with `core` Tucker's core C (r, r, r)."""

    def __init__(self, r: int, width: int, weight: Tensor, core: bool):
        super().__init__()
        self.u = nn.Parameter(empty_like_weight(weight, r, width))
        self.v = nn.Parameter(empty_like_weight(weight, width, r))
        self.register_parameter("core", nn.Parameter(empty_like_weight(weight, r, r, r)) if core else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.u.shape[1])
        nn.init.uniform_(self.u, -bound, bound)
        nn.init.zeros_(self.v)
        if self.core is not None:
            nn.init.xavier_uniform_(self.core)


class Inner(FirstValues):
    """What a layer has of its own, from U(-bound, bound).

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
    V to one of the n pieces of the output.

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

    def give(self, outer: Outer, inner: Inner, pieces: tuple[int, int]) -> None:
        """Have the factors; those that are shared in a tuple, as the first layer alone registers them."""
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
        sums = self.current_sums() if self.enabled else None
        if sums is not None:
            return F.linear(x, sums.weight, self.bias)
        y = super().forward(x)
        return y + self.scale * self.increment(x).to(y.dtype) if self.enabled else y

    def increment(self, x: Tensor) -> Tensor:
        """The increment's product with x (..., in), without the scale."""
        (outer,), (n, m) = self.shared, self.pieces
        u, s, v = (factor.to(x.dtype) for factor in (outer.u, self.matrices(), outer.v))
        x = F.pad(x, (0, m * u.shape[1] - self.in_features)).unflatten(-1, (m, -1))
        hidden = self.dropout(F.linear(F.linear(x, u).flatten(-2), s))
        return F.linear(hidden.unflatten(-1, (n, -1)), v).flatten(-2)[..., : self.out_features]

    def summed(self) -> tuple[Tensor, None]:
        (outer,), (n, m) = self.shared, self.pieces
        s = self.matrices().unflatten(0, (n, -1)).unflatten(2, (m, -1))
        whole = torch.einsum("or,nrms,si->nomi", outer.v, s, outer.u).flatten(2).flatten(0, 1)
        increment = self.scale * whole[: self.out_features, : self.in_features]
        return (self.weight + increment).to(self.weight.dtype), None

    def products(self, needs_gradient: bool) -> list[Product]:
        """With U, S and V; making S of a core is no matter of rows."""
        (outer,), (n, m) = self.shared, self.pieces
        (r, width), trains = outer.u.shape, self.inner.s.requires_grad
        sizes = ((m * r * width, needs_gradient), (n * m * r * r, True), (n * r * width, True))
        return [Product(size, size, trains, needed) for size, needed in sizes]
