"""Compacter and Compacter++ (Karimi Mahabadi et al., 2021): adapters whose weights are sums of Kronecker products."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import sqrt
from typing import ClassVar, Literal, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, MacCount, empty_like_weight
from capaboost_core.methods.bottleneck import ACTIVATION, AdapterLinear
from capaboost_core.methods.method import Method, register_method
from capaboost_core.plan import Plan, Roles
from capaboost_core.sharing.masks import PLAIN, TIED, mask_bits
from capaboost_core.sharing.tied import ResetOnMaterialize, SharedParameters, TiedWeight, TyingSettings


class KroneckerAdapter(ResetOnMaterialize, SharedParameters):
    """U(f(D(h))) with D(h) = h sum_i A_i kron (s_i t_i) + c, and U alike with other s, t and bias.

    The slow weights A of shape (n, n, n), index i first, are shared by both projections of all layers; s_i and t_i of
    rank k are the layer's own (Karimi Mahabadi et al., 2021, arXiv 2106.04647). No sum is ever built. D cuts h into n
    pieces of width / n and multiplies each by all s, then the n * n * k values by A and t, made one small matrix; U
    does the same in reverse. So a row costs 2 n k (width + r n) multiply-adds in place of 2 width r. With d masked
    views of s and t, D = sum_i A_i kron (sum_j (s_i * ms_ij) (t_i * mt_ij)): they are concatenated, to a rank d k.

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

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """Of the four products of a row, in their order."""
        factors = (self.down_left, self.down_right, self.up_left, self.up_right)
        times, needed = (self.n, self.n**2, self.n**2, self.n), (needs_gradient, True, True, True)
        return [
            MacCount(number * factor.executed, number * factor.kept, factor.trains, needs)
            for factor, number, needs in zip(factors, times, needed, strict=True)
        ]


@register_method("compacter", capaboost_compacter=TIED, compacter=PLAIN)
class Compacter(TyingSettings, Method):
    """An adapter of Kronecker products after each attention and each feed-forward part; all share the small factors.

    Per adapter 2 * phm_rank * (width + r) + r + width parameters, and phm_dim^3 once (arXiv 2106.04647). The defaults
    are the authors' for T5-base, whose width / 32 is 24, run with a learning rate of 3e-3 (rabeehk/compacter
    seq2seq/configs/compacter.json@e123daa). They train the norms too, which stay frozen here: 0.021 of their 0.073 %.
    Tied, the other factors have d masked views each, and the small ones are shared without masks.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: AdapterLinear}
    wanted: ClassVar[str] = "nn.Linear"
    recipe: ClassVar[str] = "padapter"
    budget: ClassVar[str | None] = "r"
    starts_as_base: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("o", "f2")

    r: int = Field(default=24, ge=1, le=65536, description="Width of the bottleneck, a multiple of phm_dim.")
    phm_dim: int = Field(
        default=4, ge=1, le=64, description="n: Kronecker products in a sum, and the size of their left side."
    )
    phm_rank: int = Field(default=1, ge=1, le=65536, description="Rank of the right side of each Kronecker product.")
    activation: Literal["relu", "swish", "gelu"] = Field(default="gelu", description="Of the bottleneck.")

    @property
    def budget_step(self) -> int:
        return self.phm_dim

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        return Plan(roles.targets(self.roles), roles.head, roles.required_flags)

    def make_adapter(self, path: str, width: int, weight: Tensor) -> KroneckerAdapter:
        """The module that a layer adds.

        Raises:
            UserError: If phm_dim does not divide r and the layer's width.
        """
        for name, size in (("r", self.r), (f"the width of {path}", width)):
            if size % self.phm_dim:
                raise UserError(f"method {self.name}: {name} is {size}, no multiple of phm_dim {self.phm_dim}")
        return KroneckerAdapter(self, path, width, weight)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """All layers read the slow weights of the first."""
        layers = super().make_layers(modules, plan)
        first, *others = (cast(KroneckerAdapter, layer.adapter) for layer in layers.values())
        for adapter in others:
            adapter.attach_shared(first, "slow")
        return layers


@register_method("compacter++", **{"capaboost-compacter++": TIED, "compacter++": PLAIN})
class CompacterPlusPlus(Compacter):
    """Compacter after the feed-forward parts alone."""

    roles: ClassVar[tuple[str, ...]] = ("f2",)
