"""Compacter's adapter: both projections are sums of Kronecker products."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Product, empty_like_weight
from capaboost_core.first_values import FirstValues
from capaboost_core.methods.bottleneck import ACTIVATION
from capaboost_core.sharing.borrowing import Borrower
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight

if TYPE_CHECKING:
    from capaboost_core.methods.compacter import Compacter


class KroneckerAdapter(FirstValues, Borrower):
    """U(f(D(h))) with D(h) = h sum_i A_i kron (s_i t_i) + c, and U alike with other s, t and bias.

    The slow weights A of shape (n, n, n), index i first, are shared by both projections of all layers; s_i and t_i of
    rank k are the layer's own (Karimi Mahabadi et al., 2021, arXiv 2106.04647). No sum is ever built. D cuts h into n
    pieces of width / n and multiplies each by all s, then the n * n * k values by A and t, made one small matrix; U
    does the same in reverse. So a row costs 2 n k (width + r n) multiply-adds in place of 2 width r. With d masked
    views of s and t, D = sum_i A_i kron (sum_j (s_i * ms_ij) (t_i * mt_ij)): they stand side by side, as a rank d k.

    Worked example, width 768, r 24, n 4, k 1: pieces (.., 4, 192) times s^T (192, 4) are (.., 4, 4); A and t make
    (24, 16), which gives the hidden (.., 24); A and U's s make (16, 24), which gives (.., 4, 4); times t (4, 192).

    Args:
        config: The method's settings.
        path: Module path that keys the masks.
        width: Size of h and of the output.
        weight: A frozen weight, which gives device and precision.
    """

    def __init__(self, config: Compacter, path: str, width: int, weight: Tensor):
        super().__init__()
        r, n, rank = config.r, config.phm_dim, config.phm_rank
        self.n, self.activation = n, ACTIVATION[config.activation]
        self.slow = nn.Parameter(empty_like_weight(weight, n, n, n))
        for name, size in {"down_left": width, "down_right": r, "up_left": r, "up_right": width}.items():
            bound = sqrt(12 / (rank + size // n))
            fill = partial(nn.init.uniform_, a=-bound, b=bound)
            first = fill(empty_like_weight(weight, n, rank, size // n))
            setattr(self, name, TiedWeight(config, mask_bits(config, path, name, first.shape), first, fill))
        self.down_bias = nn.Parameter(empty_like_weight(weight, r))
        self.up_bias = nn.Parameter(empty_like_weight(weight, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A from N(0, 1e-4), biases zero; s and t are Glorot-uniform with gain sqrt(2).

        As in the authors' code: rabeehk/compacter seq2seq/hypercomplex/layers.py:100-134@e123daa.
        """
        for name, parameter in self.named_parameters(recurse=False):
            if name == "slow":
                nn.init.normal_(parameter, std=1e-4)
            else:
                nn.init.zeros_(parameter)

    def factor(self, name: str) -> Tensor:
        """The views of an s or t, (n, d * k, size / n)."""
        return getattr(self, name).copies().flatten(1, 2)

    def forward(self, h: Tensor) -> Tensor:
        """h (..., width) -> (..., width)."""
        down, up = self._small_factors()
        pieces = F.linear(h.unflatten(-1, (self.n, -1)), self.factor("down_left").flatten(0, 1).to(h.dtype))
        hidden = self.activation(F.linear(pieces.flatten(-2), down.to(h.dtype), self.down_bias.to(h.dtype)))
        pieces = F.linear(hidden, up.to(h.dtype)).unflatten(-1, (self.n, -1))
        return F.linear(pieces, self.factor("up_right").flatten(0, 1).T.to(h.dtype)).flatten(-2) + self.up_bias.to(
            h.dtype
        )

    def _small_factors(self) -> tuple[Tensor, Tensor]:
        """A with the t of D, (r, n * n * k), and with the s of U, (n * n * k, r)."""
        slow, right, left = (
            self.slow,
            self.factor("down_right"),
            self.factor("up_left"),
        )  # (i, a, c), (i, k, p), (i, k, q)
        down = slow.permute(2, 1, 0)[:, None, :, :, None] * right.permute(2, 0, 1)[None, :, None]  # (c, p, a, i, k)
        up = slow.permute(2, 0, 1)[:, :, None, :, None] * left[None, :, :, None]  # (c, i, k, a, q)
        return down.flatten(0, 1).flatten(1), up.flatten(0, 2).flatten(1)

    def products(self, needs_gradient: bool) -> list[Product]:
        """Of the four products of a row, in their order."""
        factors = (self.down_left, self.down_right, self.up_left, self.up_right)
        times, needed = (self.n, self.n**2, self.n**2, self.n), (needs_gradient, True, True, True)
        return [
            Product(number * factor.executed, number * factor.kept, factor.trains, needs)
            for factor, number, needs in zip(factors, times, needed, strict=True)
        ]
