"""Settings that adapters have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.methods.adapter_layers import AdapterLinear
from capaboost_core.methods.bottleneck import Bottleneck
from capaboost_core.methods.scaled import WORDS, Scaled
from capaboost_core.plan import Target
from capaboost_core.roles import Roles
from capaboost_core.settings.base import refuse


class AdapterSettings(Scaled):
    """Tied bottlenecks after frozen layers."""

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
        """Without the named targets, which are LoRA's, though files of 0.1.0 hold them."""
        return super().used(values) - ({"targets"} if values.get("targets") in WORDS else set())

    def make_adapter(self, path: str, width: int, weight: Tensor) -> nn.Module:
        """The module that a layer adds; see `AdapterMaker`."""
        return Bottleneck(self, path, width, weight)


class AfterFeedForward(AdapterSettings):
    """An adapter on the output of each feed-forward part, before dropout and norm, as AdaMix's code has it.

    Start, activation and r are that code's for BERT-base (microsoft/AdaMix bert_base_mnli_expert_soup.sh,
    src/transformers/models/bert/modeling_bert.py:435-455@d361e9d).
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: AdapterLinear}
    wanted: ClassVar[str] = "nn.Linear"
    starts_as_base: ClassVar[bool] = False

    r: int = Field(48, ge=1, le=65536, description="Width of the bottleneck.")
    init: Literal["lora", "official"] = Field("official", description="lora: up = 0; official: N(0, 0.02) everywhere.")
    activation: Literal["relu", "swish", "gelu"] = Field("gelu", description="Of the bottleneck.")

    def places(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        return roles.targets(("f2",))
