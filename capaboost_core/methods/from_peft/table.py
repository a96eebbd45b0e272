"""The methods that peft brings, a row for each, without importing it; docs/methods.md has their formulas in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, create_model
from torch import nn

from capaboost_core.methods.from_peft.adalora import AdaLoRA
from capaboost_core.methods.from_peft.method import FromPeft, PeftMethod
from capaboost_core.methods.method import register_method
from capaboost_core.plan import Plan, Roles, Target
from capaboost_core.sharing.masks import hash_random

# (IA)^3 (Liu et al., 2022) scales what k and v give, and what f2 takes.


class IA3(FromPeft):
    """A gain for each output of a layer; of f2, for each of its inputs."""

    default_roles: ClassVar[tuple[str, ...]] = ("k", "v", "f2")

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        plan = super().plan(model, roles)
        inner = {module.path for block in roles.blocks for module in block.modules_for(["f2"])}
        return replace(plan, targets=tuple(replace(t, of_input=t.path in inner) for t in plan.targets))


class SHiRA(FromPeft):
    """r (in + out) entries of each weight. peft itself has the same positions for all layers of one shape."""

    seed: int = Field(default=0, ge=0, lt=2**64, description="Seed of the positions, independent of the run's own.")

    def peft_layers(self, stand_ins: Mapping[Target, nn.Module]) -> dict[Target, nn.Module]:
        from capaboost_core.methods.from_peft.shira_layer import ShiraLinear  # needs peft

        config = self.peft_config()
        return {target: ShiraLinear(layer, self._places(target, layer), config) for target, layer in stand_ins.items()}

    def _places(self, target: Target, layer: Any) -> np.ndarray:
        """Positions in the flat weight, in rising order: those of the smallest random integers."""
        drawn = hash_random(f"{self.seed}/{target.path}/shira", (layer.weight.numel(),))
        return np.sort(np.argsort(drawn, kind="stable")[: self.r * sum(layer.weight.shape)])


FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "r": (int, dict(default=8, ge=1, le=65536, description="Inner dimension of the increment.")),
    "alpha": (
        float | None,
        dict(
            default=None,
            gt=0,
            examples=["16"],
            json_schema_extra={"null": "alpha = r"},
            description="Scale of the increment, divided as the method's formula says.",
        ),
    ),
    "dropout": (
        float,
        dict(default=0.0, ge=0, lt=1, description="Probability of dropping an entry of the increment's input."),
    ),
    "seed": (
        int,
        dict(default=0, ge=0, lt=2**63, description="Of what is drawn and stays frozen, independent of the run's."),
    ),
    "d_initial": (float, dict(default=0.1, description="First value of each entry of d.")),
    "decompose_factor": (
        int,
        dict(default=-1, ge=-1, description="Size of the first Kronecker factor; -1 for the most nearly square."),
    ),
}
LORA = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
PROJECTED = {"save_projection": False}  # projections follow from the seed; a checksum of them is in the adapter's file

ROWS: dict[str, tuple[type[FromPeft], PeftMethod]] = {
    "adalora": (
        AdaLoRA,
        PeftMethod(
            config="AdaLoraConfig",
            doc="alpha/init_r B diag(E) A, of ranks that fall to r on average (Zhang et al., 2023, arXiv 2303.10512).",
            settings=LORA | {"r": "target_r", "init_r": "init_r"},
            defaults={"alpha": 16.0},
            arguments={"total_step": 1},  # the loop knows the steps
        ),
    ),
    "dora": (
        FromPeft,
        PeftMethod(
            config="LoraConfig",
            doc="m (W + alpha/r B A) / ||W + alpha/r B A|| by rows (Liu et al., 2024, arXiv 2402.09353).",
            settings=LORA,
            arguments={"use_dora": True},
        ),
    ),
    "rslora": (
        FromPeft,
        PeftMethod(
            config="LoraConfig",
            doc="W + alpha/sqrt(r) B A (Kalajdzievski, 2023, arXiv 2312.03732).",
            settings=LORA,
            defaults={"alpha": 16.0},
            arguments={"use_rslora": True},
        ),
    ),
    "pissa": (
        FromPeft,
        PeftMethod(
            config="LoraConfig",
            doc="W + alpha/r (B A - B_0 A_0) from the top r singular values (Meng et al., 2024, arXiv 2404.02948).",
            settings=LORA,
            arguments={"init_lora_weights": "pissa"},
            splits_weight=True,
        ),
    ),
    "vera": (
        FromPeft,
        PeftMethod(
            config="VeraConfig",
            doc="W + diag(b) B diag(d) A with B and A frozen and shared (Kopiczko et al., 2024, arXiv 2310.11454).",
            settings={"r": "r", "dropout": "vera_dropout", "seed": "projection_prng_key", "d_initial": "d_initial"},
            defaults={"r": 256},
            arguments=PROJECTED,
        ),
    ),
    "loha": (
        FromPeft,
        PeftMethod(
            config="LoHaConfig",
            doc="W + alpha/r (B_1 A_1) * (B_2 A_2) (Hyeon-Woo et al., 2022, arXiv 2108.06098).",
            settings={"r": "r", "alpha": "alpha"},
        ),
    ),
    "lokr": (
        FromPeft,
        PeftMethod(
            config="LoKrConfig",
            doc="W + alpha/r C kron (B A) (Yeh et al., 2024, arXiv 2309.14859).",
            settings={"r": "r", "alpha": "alpha", "decompose_factor": "decompose_factor"},
            holds_r=False,
        ),
    ),
    "ia3": (
        IA3,
        PeftMethod(
            config="IA3Config",
            doc="Gains of k and v, and of what f2 takes (Liu et al., 2022, arXiv 2205.05638).",
            settings={},
            defaults={"targets": None},  # settings files name LoRA's targets, which are not its default
            arguments={"feedforward_modules": r"in\d+"},
            budget=None,
            holds_r=False,
        ),
    ),
    "randlora": (
        FromPeft,
        PeftMethod(
            config="RandLoraConfig",
            doc="W + alpha/r sum_j B_j diag(l_j) A diag(g_j), B_j, A frozen (Albert et al., 2025, arXiv 2502.00987).",
            settings={
                "r": "r",
                "alpha": "randlora_alpha",
                "dropout": "randlora_dropout",
                "seed": "projection_prng_key",
            },
            defaults={"r": 32, "alpha": 640.0},
            budget=None,  # fewer are trained with a larger r
            arguments=PROJECTED,
        ),
    ),
    "shira": (
        SHiRA,
        PeftMethod(
            config="ShiraConfig",
            doc="W + S with r (in + out) entries at random positions (Bhardwaj et al., 2024, arXiv 2406.13175).",
            settings={"r": "r"},
            arguments={"mask_type": "drawn by path"},
        ),
    ),
}


def _method(name: str, base: type[FromPeft], row: PeftMethod) -> type[FromPeft]:
    """The class of a row: its settings, in a registered method."""
    fields = {}
    for setting in filter(FIELDS.__contains__, row.settings):
        kind, description = FIELDS[setting]
        default = {"default": row.defaults[setting]} if setting in row.defaults else {}
        fields[setting] = (kind, Field(**description | default))
    made = create_model(name, __base__=base, __module__=__name__, __doc__=row.doc, **fields)
    made.row, made.budget, made.starts_as_base = row, row.budget, not row.splits_weight
    return register_method(name, **{name: row.defaults})(made)


for name, (base, row) in ROWS.items():
    _method(name, base, row)
