"""CapaBoost-PAdapter, and the plain adapter of Pfeiffer et al. (2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from capaboost_core.adapted import Adapted
from capaboost_core.methods.base import register_method
from capaboost_core.methods.bottleneck import AdapterDropout, AdapterLinear, AdapterNorm
from capaboost_core.methods.scaled import WORDS, Scaled
from capaboost_core.plan import Target
from capaboost_core.roles import Roles
from capaboost_core.settings.base import refuse
from capaboost_core.sharing.settings import PLAIN, TIED


class Adapter(Scaled):
    """Tied bottlenecks beside frozen layers: what PAdapter and HAdapter have in common."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {
        nn.Linear: AdapterLinear,
        nn.LayerNorm: AdapterNorm,
        nn.Dropout: AdapterDropout,
    }
    wanted: ClassVar[str] = "nn.Linear or nn.LayerNorm"
    recipe: ClassVar[str] = "padapter"

    activation: Literal["relu", "swish", "gelu"] = Field("relu", description="Of the bottleneck.")

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if self.targets in WORDS:
            refuse("targets", self.targets, f"it means nothing to method {self.name}; drop it")
        return self

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """Without the words for targets, which are LoRA's and which files of 0.1.0 hold."""
        return super().used(values) - ({"targets"} if values.get("targets") in WORDS else set())


@register_method("padapter", capaboost_padapter=TIED | {"activation": "relu"}, padapter=PLAIN | {"activation": "relu"})
class PAdapter(Adapter):
    """A bottleneck after each feed-forward part, inside the norm of the residual sum where there is one."""

    def places(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        blocks = roles.each_block()
        return tuple(Target((block.playing(["norm"]) or block.playing(["f2"]))[-1].path) for block in blocks)
