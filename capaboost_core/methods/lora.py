"""CapaBoost-LoRA, and plain LoRA (Hu et al., 2021) as its case of one module without a mask."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted
from capaboost_core.methods.lora_layer import TARGET_PRESETS, LoRALayer, LoRALinear, LowRankSettings
from capaboost_core.methods.method import register_method
from capaboost_core.plan import MATRICES, Plan, Roles, Target
from capaboost_core.settings import Text, Texts
from capaboost_core.sharing.masks import PLAIN, TIED


@register_method("lora", capaboost_lora=TIED, lora=PLAIN)
class LoRA(LowRankSettings):
    """s * sum_i (B * mb_i)(A * ma_i) on frozen linear layers, s = `config.scale`; by default 0.75 of LoRA's size."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: LoRALinear}
    wanted: ClassVar[str] = "nn.Linear"
    target_presets: ClassVar[tuple[str, ...]] = TARGET_PRESETS

    targets: Text | Texts = Field(
        default="attention-qv",
        examples=["attention-qv"],
        description="attention-qv (q and v, each with factors of its own), fused-qkv (the layer that fuses q, k and "
        "v, with one A for the three), all-linear (q, k, v, o, f1 and f2), or full suffixes of module paths, such as "
        "[attn.proj].",
    )

    def default_targets(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        """q and v, each with an increment even where one layer fuses them, or the layers that `targets` names."""
        if self.targets == "all-linear":
            return roles.targets(MATRICES)
        if self.targets == "attention-qv":
            return roles.targets(("q", "v"))
        fused = all(module.rows for block in roles.each_block() for module in block.modules_for("qkv"))
        if not fused:
            kind = type(model).__name__
            raise UserError(f"targets: fused-qkv, but {kind} has q, k and v apart; type attention-qv or all-linear")
        return roles.targets("qkv", whole=True)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        layers = super().make_layers(modules, plan)
        any(_warn_of_rank(self.r, layer) for layer in layers.values() if isinstance(layer, LoRALayer))
        return layers


def _warn_of_rank(r: int, layer: LoRALayer) -> bool:
    """Warn that r is above the layer's width: allowed, as files may hold it, but it adds parameters and no rank."""
    width = min(layer.in_features, *layer.widths)
    if r > width:
        warnings.warn(f"r is {r}, above the width {width} of {layer.path}: that adds no rank; lower r", stacklevel=2)
    return r > width
