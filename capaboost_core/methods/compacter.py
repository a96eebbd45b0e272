"""Compacter and Compacter++ (Karimi Mahabadi et al., 2021): adapters whose weights are sums of Kronecker products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError
from capaboost_core.methods.adapter_layers import AdapterLinear
from capaboost_core.methods.base import Method
from capaboost_core.methods.kronecker_adapter import KroneckerAdapter
from capaboost_core.methods.registry import register_method
from capaboost_core.plan import Plan
from capaboost_core.roles import Roles
from capaboost_core.sharing.settings import PLAIN, TIED, Tying


@register_method("compacter", capaboost_compacter=TIED, compacter=PLAIN)
class Compacter(Tying, Method):
    """An adapter of Kronecker products after each attention and each feed-forward part; all share the small factors.

    Per adapter 2 * phm_rank * (width + r) + r + width parameters, and phm_dim^3 once (arXiv 2106.04647). The defaults
    are the authors' for T5-base, whose width / 32 is 24, run with a learning rate of 3e-3 (rabeehk/compacter
    seq2seq/configs/compacter.json@e123daa). They train the norms too, which stay frozen here: 0.021 of their 0.073 %.
    Tied, the other factors have d masked views each, and the small ones stay whole.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: AdapterLinear}
    wanted: ClassVar[str] = "nn.Linear"
    recipe: ClassVar[str] = "padapter"
    budget: ClassVar[str | None] = "r"
    starts_as_base: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("o", "f2")

    r: int = Field(24, ge=1, le=65536, description="Width of the bottleneck, a multiple of phm_dim.")
    phm_dim: int = Field(
        4, ge=1, le=64, description="n: Kronecker products in a sum, and the size of their left side."
    )
    phm_rank: int = Field(1, ge=1, le=65536, description="Rank of the right side of each Kronecker product.")
    activation: Literal["relu", "swish", "gelu"] = Field("gelu", description="Of the bottleneck.")

    @property
    def budget_step(self) -> int:
        return self.phm_dim

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        return Plan(roles.targets(self.roles), roles.head, roles.switches)

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
        first, *others = (layer.adapter for layer in layers.values())
        for adapter in others:
            adapter.borrow(first, "slow")
        return layers


@register_method("compacter++", **{"capaboost-compacter++": TIED, "compacter++": PLAIN})
class CompacterPlusPlus(Compacter):
    """Compacter after the feed-forward parts alone."""

    roles: ClassVar[tuple[str, ...]] = ("f2",)
