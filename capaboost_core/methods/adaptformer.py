"""AdaptFormer (Chen et al., 2022): a bottleneck in parallel with each feed-forward part."""

from __future__ import annotations

from typing import ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from capaboost_core.layers import Adapted
from capaboost_core.methods.bottleneck import AdapterSettings, Bottleneck
from capaboost_core.methods.method import Method, register_method
from capaboost_core.plan import Plan, Roles, Target
from capaboost_core.sharing.masks import PLAIN, TIED
from capaboost_core.sharing.tied import TyingSettings


@register_method("adaptformer", capaboost_adaptformer=TIED, adaptformer=PLAIN)
class AdaptFormer(TyingSettings, Method):
    """FFN(x) + scale * up(dropout(relu(down(x)))), with x what the feed-forward part reads.

    In a ViT x is normed, as in the paper's Eq. 2 (arXiv 2205.13535). Width, scale, dropout and first values are those
    of the authors' code (ShoufaChen/AdaptFormer main_image.py:114, 187-190, models/custom_modules.py:70,
    models/adapter.py:43-48, 55-60 at 6967d67), whose bottleneck reads x before the norm. Tied, its d bottlenecks are
    masked views of one.

    A feed-forward part takes part if an integration has put a layer for its class into `layers`.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {}
    layers_from_integration: ClassVar[bool] = True
    recipe: ClassVar[str] = "padapter"
    budget: ClassVar[str | None] = "r"
    init: ClassVar[str] = "lora"
    activation: ClassVar[str] = "relu"

    r: int = Field(default=64, ge=1, le=65536, description="Width of one bottleneck.")
    scale: float = Field(default=0.1, gt=0, description="The bottleneck's output is scaled by it.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Probability of dropping a hidden value in training.")

    @property
    def bias_scale(self) -> float:
        return self.scale

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """Each feed-forward part."""
        return Plan(roles.targets(("feed_forward",)), roles.head, roles.required_flags)


class ParallelBottleneck(Bottleneck):
    """`Bottleneck` whose dropout is on its hidden values."""

    def forward(self, h: Tensor) -> Tensor:
        return self.widen(self.dropout(self.activation(self.narrow(h))))


class ParallelFeedForward(Adapted):
    """A feed-forward part f, then f(x) + bottleneck(x).

    Args:
        base: The frozen feed-forward part to adopt; its first linear layer reads x.
        config: The adapter's configuration.
        target: Path of the feed-forward part.
    """

    def __init__(self, base: nn.Module, config: AdaptFormer, target: Target):
        self.adopt(base, target.path)
        linear = next(module for module in base.modules() if isinstance(module, nn.Linear))
        settings = cast(AdapterSettings, config)  # it has all of these that a bottleneck reads
        self.adapter = ParallelBottleneck(settings, target.path, self.width(linear), linear.weight)
        self.train(base.training)

    def width(self, linear: nn.Linear) -> int:
        """The size of x."""
        return linear.in_features

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., width)."""
        y = super().forward(x)
        return y + self.adapter(x) if self.enabled else y
