"""The factors of FacT, and the linear layer whose increment is made of them."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Product, dropout_of, empty_like_weight
from capaboost_core.first_values import FirstValues
from capaboost_core.mergeable import Mergeable
from capaboost_core.plan import Target
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight

if TYPE_CHECKING:
    from capaboost_core.methods.fact import FacT


class Outer(FirstValues):
    """What all layers share: tied U (r, width) and V^T (r, width), and with `core` Tucker's core C (r, r, r)."""

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
        u, s, v = (factor.to(x.dtype) for factor in (outer.u.copies(), self.matrices(), outer.v.copies()))
        x = F.pad(x, (0, m * u.shape[-1] - self.in_features)).unflatten(-1, (m, -1))
        pieces = F.linear(x, u.flatten(0, 1)).unflatten(-1, (len(u), -1)).transpose(-2, -3).flatten(-2)
        hidden = self.dropout(F.linear(pieces, s)).unflatten(-1, (n, -1)).transpose(-2, -3).flatten(-2)
        return (hidden @ v.flatten(0, 1)).flatten(-2)[..., : self.out_features]

    def summed(self) -> tuple[Tensor, None]:
        (outer,), (n, m) = self.shared, self.pieces
        s = self.matrices().unflatten(0, (n, -1)).unflatten(2, (m, -1))
        u, v = outer.u.copies(False), outer.v.copies(False)
        whole = torch.einsum("dro,nrms,dsi->nomi", v, s, u).flatten(2).flatten(0, 1)
        increment = self.scale * whole[: self.out_features, : self.in_features]
        return (self.weight + increment).to(self.weight.dtype), None

    def products(self, needs_gradient: bool) -> list[Product]:
        """With U, S and V; making S of a core is no matter of rows."""
        (outer,), (n, m) = self.shared, self.pieces
        u, v, s = outer.u, outer.v, outer.u.num_tied * n * m * outer.u.bits.shape[0] ** 2
        return [
            Product(m * u.executed, m * u.kept, u.trains, needs_gradient),
            Product(s, s, self.inner.s.requires_grad, True),
            Product(n * v.executed, n * v.kept, v.trains, True),
        ]
