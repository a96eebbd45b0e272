"""CapaBoost-Prefix, and prefix tuning (Li & Liang, 2021) without its MLP."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError
from capaboost_core.methods.base import Method
from capaboost_core.methods.prefix_layer import Prefix
from capaboost_core.methods.registry import register_method
from capaboost_core.plan import Plan
from capaboost_core.roles import Roles
from capaboost_core.sharing.settings import PLAIN, TIED, Tying


@register_method("prefix", capaboost_prefix=TIED, prefix=PLAIN)
class PrefixTuning(Tying, Method):
    """r keys and values in front of those of each attention; d masked views of them, so d * r vectors.

    An attention takes part if an integration has put a layer for its class into `layers`.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {}
    integrated: ClassVar[bool] = True
    recipe: ClassVar[str] = "padapter"
    budget: ClassVar[str | None] = "r"
    starts_as_base: ClassVar[bool] = False

    r: int = Field(8, ge=1, le=65536, description="Length of one prefix.")

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """Each attention."""
        targets = roles.targets(("attention",))
        if not targets:
            raise UserError(f"method prefix knows no attention of {type(model).__name__}; choose lora or an adapter")
        return Plan(targets, roles.head, roles.switches)

    def make_prefix(self, path: str, width: int, weight: Tensor) -> Prefix:
        """What an attention puts before its keys and values; see `Prefix`."""
        return Prefix(self, path, width, weight)
