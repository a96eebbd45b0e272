"""CapaBoost's adapters: tied bottlenecks, as PAdapter (Pfeiffer et al., 2021) and HAdapter (Houlsby et al., 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, Filler, MacCount, dropout_of, empty_like_weight, macs_of
from capaboost_core.methods.lora_layer import TARGET_PRESETS, LowRankSettings
from capaboost_core.methods.method import register_method
from capaboost_core.plan import Roles, Target
from capaboost_core.settings import refuse
from capaboost_core.sharing.masks import PLAIN, TIED, mask_bits
from capaboost_core.sharing.tied import ResetOnMaterialize, SharedParameters

ACTIVATION = {"relu": F.relu, "swish": F.silu, "gelu": F.gelu}


class Bottleneck(ResetOnMaterialize, SharedParameters):
    """s * sum_i f(h (D * md_i)^T + c)(U * mu_i)^T + alpha/r * e, s = `config.scale`, f = `config.activation` (Eq. 5).

    The bias c (r) of the bottleneck is seen by every copy, the output bias e (width) is added once;
    biases are not masked. The d copies are two products of concatenated factors, as in LoRA.

    Args:
        config: The adapter's configuration; `init="lora"` starts with U = 0, so that the model starts as
            its base, `init="official"` with N(0, 0.02) on both factors.
        path: Module path that keys the masks.
        width: Size of h and of the output.
        weight: A frozen weight, which gives device and precision.
    """

    def __init__(self, config: AdapterSettings, path: str, width: int, weight: Tensor):
        super().__init__()
        bound = 1 / math.sqrt(width)
        fill_down, fill_up = partial(nn.init.uniform_, a=-bound, b=bound), nn.init.zeros_
        if config.init == "official":
            fill_down = fill_up = partial(nn.init.normal_, std=0.02)
        self.downs = self.hidden_sizes(config)
        for name, size in self.downs.items():
            self.make_projection(config, path, name, empty_like_weight(weight, size, width), fill_down)
        self.make_projection(config, path, "up", empty_like_weight(weight, width, config.r), fill_up)
        self.reset_parameters()
        self.num_tied, self.scaling, self.bias_scale = config.num_tied, config.scale, config.bias_scale
        self.dropout, self.activation = dropout_of(config.dropout), ACTIVATION[config.activation]

    def hidden_sizes(self, config: AdapterSettings) -> dict[str, int]:
        """Outputs of each projection of the input."""
        return {"down": config.r}

    def make_projection(self, config: AdapterSettings, path: str, name: str, empty: Tensor, fill: Filler) -> None:
        """Make the weight `name`, of the shape (out, in) of an empty tensor, and its bias."""

        def rank_first(values: Any) -> Any:
            return values.T if name == "up" else values

        def masks() -> np.ndarray:
            return rank_first(mask_bits(config, path, name, empty.shape))

        setattr(self, name, config.make_weight(name, masks, rank_first(fill(empty)), fill))
        setattr(self, f"{name}_bias", nn.Parameter(empty.new_empty(len(empty))))

    def reset_parameters(self) -> None:
        for bias in self.parameters(recurse=False):
            nn.init.zeros_(bias)

    def projection(self, name: str) -> tuple[Tensor, Tensor]:
        """The copies of a weight (d, out, in), of `up` (d, in, out), and its bias (out)."""
        return getattr(self, name).copies(), getattr(self, f"{name}_bias")

    def forward(self, h: Tensor) -> Tensor:
        """h (..., width) -> (..., width)."""
        return self.widen(self.activation(self.narrow(self.dropout(h))))

    def narrow(self, h: Tensor) -> Tensor:
        """(..., width) -> (..., d*r), the hidden values of all copies."""
        return self.combine([self._project(h, *self.projection(name)) for name in self.downs])

    def widen(self, hidden: Tensor) -> Tensor:
        """(..., d*r) -> (..., width), scaled."""
        up, bias = self.projection("up")
        up, bias = self.scaling * up.flatten(0, 1).T, self.bias_scale * bias
        return F.linear(hidden, up.to(hidden.dtype), bias.to(hidden.dtype))

    def _project(self, h: Tensor, copies: Tensor, bias: Tensor) -> Tensor:
        """(..., width) -> (..., d * out)."""
        return F.linear(h, copies.flatten(0, 1).to(h.dtype), bias.repeat(self.num_tied).to(h.dtype))

    def combine(self, projections: list[Tensor]) -> Tensor:
        """The hidden values (..., d * r) of the projections of the input."""
        return projections[0]

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """Counts of the input's projections, then of up, for `Adapted.macs` of the layer that holds it."""
        return macs_of([[getattr(self, name) for name in self.downs], [self.up]], needs_gradient)


# Where adapters are added: after a frozen linear layer or its dropout, or inside a residual norm.


class AdapterModule(Protocol):
    """A module (..., width) -> (..., width) that counts its multiply-adds."""

    def __call__(self, h: Tensor) -> Tensor: ...

    def macs(self, needs_gradient: bool) -> list[MacCount]: ...


class AdapterMaker(Protocol):
    """What a layer with an adapter needs of its method's settings."""

    def make_adapter(self, path: str, width: int, weight: Tensor) -> AdapterModule:
        """An adapter on the device of a frozen weight.

        Args:
            path: Module path of the layer that gets it.
            width: Size of what it adds to.
            weight: A frozen weight.
        """
        ...


class AdapterLayer(Adapted):
    """A frozen layer with a module `adapter`, whose output is added to what the layer computes."""

    adapter: AdapterModule

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        return self.adapter.macs(needs_gradient)


class AdapterLinear(AdapterLayer, nn.Linear):
    """Linear layer h = x W^T + b, then h + adapter(h).

    Where a block adds its residual after the norm (timm's ViTs), PAdapter follows the feed-forward part
    and HAdapter the attention's output as well; Houlsby et al. (2019) place it so in any encoder.

    Args:
        base: The frozen layer to adopt.
        config: Makes the adapter.
        target: Path of the layer.
    """

    def __init__(self, base: nn.Linear, config: AdapterMaker, target: Target):
        self.adopt(base, target.path)
        self.adapter = config.make_adapter(target.path, base.out_features, base.weight)
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        h = F.linear(x, self.weight, self.bias)
        return h + self.adapter(h) if self.enabled else h


class AdapterNorm(AdapterLayer, nn.LayerNorm):
    """Layer norm of a residual sum s, then norm(s + adapter(norm(s))) with the same frozen norm twice.

    That is Pfeiffer et al. (2021) in encoders that norm after the sum, s = h + x, as the authors' code
    has it: y = adapter(norm(h + x)) + h, then norm(y + x).

    Args:
        base: The frozen norm to adopt.
        config: Makes the adapter.
        target: Path of the norm.
    """

    def __init__(self, base: nn.LayerNorm, config: AdapterMaker, target: Target):
        self.adopt(base, target.path)
        self.adapter = config.make_adapter(target.path, base.normalized_shape[-1], base.weight)
        self.train(base.training)

    def forward(self, s: Tensor) -> Tensor:
        """s (..., width) -> (..., width)."""
        normed = super().forward(s)
        return super().forward(s + self.adapter(normed)) if self.enabled else normed


class AdapterDropout(AdapterLayer, nn.Dropout):
    """Dropout z = dropout(h) of a layer's output, then z + adapter(z).

    That is Houlsby et al. (2019) as adapter-transformers and AdaLoRA's code have it.

    Args:
        base: The dropout to adopt.
        config: Makes the adapter.
        target: Path of the dropout.
        linear: The layer that the dropout follows.

    Raises:
        UserError: If the target does not name that layer.
    """

    def __init__(self, base: nn.Dropout, config: AdapterMaker, target: Target, linear: nn.Linear | None = None):
        if linear is None:
            raise UserError(
                f"target {target.path} is a dropout; name the linear layer that it follows: Target.follows"
            )
        self.adopt(base, target.path)
        self.adapter = config.make_adapter(target.path, linear.out_features, linear.weight)
        self.train(base.training)

    def forward(self, h: Tensor) -> Tensor:
        """h (..., width) -> (..., width)."""
        z = super().forward(h)
        return z + self.adapter(z) if self.enabled else z


ADAPTERS: dict[type[nn.Module], type[Adapted]] = {
    nn.Linear: AdapterLinear,
    nn.LayerNorm: AdapterNorm,
    nn.Dropout: AdapterDropout,
}


# The methods and their settings.


class AdapterSettings(LowRankSettings):
    """Tied bottlenecks after frozen layers."""

    wanted: ClassVar[str] = "nn.Linear or nn.LayerNorm"
    recipe: ClassVar[str] = "padapter"

    activation: Literal["relu", "swish", "gelu"] = Field(default="relu", description="Of the bottleneck.")

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if self.targets in TARGET_PRESETS:
            refuse("targets", self.targets, f"it means nothing to method {self.name}; drop it")
        return self

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """The presets of targets are LoRA's, though files of 0.1.0 hold them for adapters too."""
        return super().used(values) - ({"targets"} if values.get("targets") in TARGET_PRESETS else set())

    def make_adapter(self, path: str, width: int, weight: Tensor) -> Bottleneck:
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

    r: int = Field(default=48, ge=1, le=65536, description="Width of the bottleneck.")
    init: Literal["lora", "official"] = Field(
        default="official", description="lora: up = 0; official: N(0, 0.02) everywhere."
    )
    activation: Literal["relu", "swish", "gelu"] = Field(default="gelu", description="Of the bottleneck.")

    def default_targets(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        return roles.targets(("f2",))


@register_method("padapter", capaboost_padapter=TIED | {"activation": "relu"}, padapter=PLAIN | {"activation": "relu"})
class PAdapter(AdapterSettings):
    """A bottleneck after each feed-forward part, inside the norm of the residual sum where there is one."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = ADAPTERS

    def default_targets(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        blocks = roles.each_block()
        return tuple(Target((block.modules_for(["norm"]) or block.modules_for(["f2"]))[-1].path) for block in blocks)


@register_method(
    "hadapter", capaboost_hadapter=TIED | {"activation": "swish"}, hadapter=PLAIN | {"activation": "swish"}
)
class HAdapter(AdapterSettings):
    """A bottleneck after each attention and after each feed-forward part; its sources have swish."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = ADAPTERS

    after_dropout: bool = Field(
        default=False,
        description="In an encoder of BERT's form the bottleneck follows the dropout after the layer, as in its "
        "sources, and not the layer.",
    )

    def default_targets(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        """o and f2 of each block, or the dropouts after them."""
        if not self.after_dropout:
            return roles.targets(("o", "f2"))
        blocks = [(b.modules_for(["o_dropout", "f2_dropout"]), b.modules_for(["o", "f2"])) for b in roles.each_block()]
        if any(len(dropouts) != len(layers) for dropouts, layers in blocks):
            kind = type(model).__name__
            raise UserError(f"after_dropout: {kind} has no dropout after both layers; set it to false")
        pairs = [pair for dropouts, layers in blocks for pair in zip(dropouts, layers, strict=True)]
        return tuple(Target(dropout.path, follows=layer.path) for dropout, layer in pairs)
