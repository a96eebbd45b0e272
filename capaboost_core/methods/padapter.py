"""CapaBoost-PAdapter, and the plain adapter of Pfeiffer et al. (2021)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from capaboost_core.adapted import Adapted
from capaboost_core.methods.adapter_layers import ADAPTERS
from capaboost_core.methods.adapter_settings import AdapterSettings
from capaboost_core.methods.registry import register_method
from capaboost_core.plan import Target
from capaboost_core.roles import Roles
from capaboost_core.sharing.settings import PLAIN, TIED

RELU = {"activation": "relu"}


@register_method("padapter", capaboost_padapter=TIED | RELU, padapter=PLAIN | RELU)
class PAdapter(AdapterSettings):
    """A bottleneck after each feed-forward part, inside the norm of the residual sum where there is one."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = ADAPTERS

    def places(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        blocks = roles.each_block()
        return tuple(Target((block.playing(["norm"]) or block.playing(["f2"]))[-1].path) for block in blocks)
