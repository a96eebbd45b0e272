"""(IA)^3's places (Liu et al., 2022): what k and v give, and what f2 takes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import nn

from capaboost_core.methods.from_peft.method import FromPeft
from capaboost_core.plan import Plan
from capaboost_core.roles import Roles


class IA3(FromPeft):
    """A gain for each output of a layer; of f2, for each of its inputs."""

    own_places: ClassVar[tuple[str, ...]] = ("k", "v", "f2")

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        plan = super().plan(model, roles)
        inner = {place.path for block in roles.blocks for place in block.playing(["f2"])}
        return replace(plan, targets=tuple(replace(t, of_input=t.path in inner) for t in plan.targets))
