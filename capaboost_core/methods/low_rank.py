"""Settings that LoRA and the adapters have in common: rank, scale, dropout and targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from capaboost_core.methods.method import Method
from capaboost_core.plan import Plan, Target, plan_suffixes
from capaboost_core.roles import Roles
from capaboost_core.settings.base import Text, Texts, refuse
from capaboost_core.sharing.tied import TyingSettings

TARGET_PRESETS = ("attention-qv", "fused-qkv", "all-linear")  # what LoRA's `targets` may be
Scaling = Literal["alpha-r", "stable"]
FLOAT32 = (2.0**-126, 2.0**127)  # the scales that float32 holds as normal numbers


class LowRankSettings(TyingSettings, Method):
    """Two tied factors of inner dimension r, whose product is scaled by what `scaling` makes of alpha.

    `stable` divides by the r d density^2 products of entries that lie behind an entry of the increment in the mean,
    whatever the kind of mask; `alpha-r` by r, as the paper does. docs/scale.md derives how an increment then moves in
    its first steps of Adam, and why `stable` is the default.
    """

    budget: ClassVar[str | None] = "r"
    target_presets: ClassVar[tuple[str, ...]] = ()  # names that `targets` may be
    if_unrecorded: ClassVar[Mapping[str, Any]] = {"scaling": "alpha-r"}

    r: int = Field(
        default=8, ge=1, le=65536, description="Inner dimension of one module: LoRA's rank, a bottleneck's width."
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        examples=["16"],
        json_schema_extra={"null": "alpha = r"},
        description="The scale of the increment, before what `scaling` divides it by.",
    )
    scaling: Scaling = Field(
        default="stable",
        description="stable: the increment is scaled by alpha / (r d density^2), so that alpha and the learning rate "
        "mean the same for every d, density and r; alpha-r: by alpha / r, as in the paper. Equal for d = 1 and "
        "density 1.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        examples=["0.1"],
        description="Probability of dropping an entry of the module's input in training.",
    )
    init: Literal["lora", "official"] = Field(
        default="lora",
        description="lora: Kaiming-uniform A over its fan-in, B = 0; official: the authors' code, A ~ U(-1/sqrt(r), "
        "1/sqrt(r)) for LoRA, N(0, 0.02) on both factors for adapters.",
    )
    targets: Text | Texts | None = Field(
        default=None,
        examples=["[attn.proj]"],
        json_schema_extra={"null": "the method's default targets"},
        description="Full suffixes of the paths of linear layers, in place of the method's default targets.",
    )

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not FLOAT32[0] <= self.bias_scale <= FLOAT32[1]:
            refuse("alpha", self.alpha, f"alpha / r scales the increment and must fit into float32; try {self.r}")
        if not FLOAT32[0] <= self.scale <= FLOAT32[1]:
            refuse("scaling", self.scaling, "alpha / (r d density^2) must fit into float32; raise density")
        return self

    @property
    def scale(self) -> float:
        """The factor of the increment's products."""
        if self.scaling == "alpha-r":
            return self.bias_scale
        return self.bias_scale / self.num_tied / self.density / self.density

    @property
    def bias_scale(self) -> float:
        """alpha / r, the factor of what is added once and without a mask."""
        return 1.0 if self.alpha is None else self.alpha / self.r

    @property
    def rows(self) -> int:
        """The number of rows of A, and of columns of B, in a layer."""
        return self.r

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """The listed layers, or the method's default targets."""
        if self.targets is None or self.targets in self.target_presets:
            return Plan(self.default_targets(model, roles), roles.head, roles.required_flags)
        suffixes = (self.targets,) if isinstance(self.targets, str) else self.targets
        return Plan(plan_suffixes(model, suffixes, roles.head).targets, roles.head, roles.required_flags)

    def default_targets(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        """The method's default targets, or those of a preset that `targets` names."""
        raise NotImplementedError
