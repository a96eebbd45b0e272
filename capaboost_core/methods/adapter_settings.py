"""Settings that the adapters have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.methods.bottleneck import Bottleneck
from capaboost_core.methods.scaled import WORDS, Scaled
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
