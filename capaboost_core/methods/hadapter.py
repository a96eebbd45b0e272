"""CapaBoost-HAdapter, and the plain adapter of Houlsby et al. (2019)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError
from capaboost_core.methods.adapter_layers import ADAPTERS
from capaboost_core.methods.adapter_settings import AdapterSettings
from capaboost_core.methods.registry import register_method
from capaboost_core.plan import Target
from capaboost_core.roles import Roles
from capaboost_core.sharing.settings import PLAIN, TIED

SWISH = {"activation": "swish"}  # as its sources have it


@register_method("hadapter", capaboost_hadapter=TIED | SWISH, hadapter=PLAIN | SWISH)
class HAdapter(AdapterSettings):
    """A bottleneck after each attention and after each feed-forward part."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = ADAPTERS

    after_dropout: bool = Field(
        False,
        description="In an encoder of BERT's form the bottleneck follows the dropout after the layer, as in its "
        "sources, and not the layer.",
    )

    def places(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        """o and f2 of each block, or the dropouts after them."""
        if not self.after_dropout:
            return roles.targets(("o", "f2"))
        blocks = [(b.playing(["o_dropout", "f2_dropout"]), b.playing(["o", "f2"])) for b in roles.each_block()]
        if any(len(dropouts) != len(layers) for dropouts, layers in blocks):
            kind = type(model).__name__
            raise UserError(f"after_dropout: {kind} has no dropout after both layers; set it to false")
        pairs = [pair for dropouts, layers in blocks for pair in zip(dropouts, layers, strict=True)]
        return tuple(Target(dropout.path, follows=layer.path) for dropout, layer in pairs)
