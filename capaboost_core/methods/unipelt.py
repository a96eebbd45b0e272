"""UniPELT (Mao et al., 2022, arXiv 2110.07577): LoRA, prefix and adapter side by side, each behind a gate."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.layers import Adapted, MacCount, empty_like_weight
from capaboost_core.methods.bottleneck import Bottleneck, PAdapter
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.lora_layer import LoRALinear, LowRankSettings, padded_deltas
from capaboost_core.methods.method import Method, register_method
from capaboost_core.methods.prefix import Prefix, PrefixTuning
from capaboost_core.plan import Plan, Roles, Target
from capaboost_core.sharing.masks import PLAIN, TIED
from capaboost_core.sharing.tied import ResetOnMaterialize, TyingSettings


class Gate(ResetOnMaterialize):
    """mean over tokens of sigmoid(x G^T + g): for each example a number in (0, 1) for each of `size` additions.

    G starts as N(0, 0.02), as BERT's layers do, so that a gate starts at about one half (Mao et al., 2022, arXiv
    2110.07577; morningmoni/UniPELT lora_layers.py:166-169, transformers/adapters/modeling.py:121-127@53d3c35).

    Args:
        size: Number of gates.
        width: Size of x.
        weight: A frozen weight, which gives device and precision.
    """

    def __init__(self, size: int, width: int, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(empty_like_weight(weight, size, width))
        self.bias = nn.Parameter(empty_like_weight(weight, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, .., width) -> (batch, 1.., size)."""
        gates = F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)).sigmoid()
        tokens = tuple(range(1, x.ndim - 1))
        return gates.mean(tokens, keepdim=True) if tokens else gates

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        entries = self.weight.numel()
        return [MacCount(entries, entries, self.weight.requires_grad, needs_gradient)]


class GatedLinear(LoRALinear):
    """x W^T + b, plus gate * sum_i x (A * ma_i)^T (B * mb_i)^T on each slice, with a gate in place of alpha / r."""

    mergeable: bool = False
    low_rank: ClassVar[bool] = False
    not_mergeable_because: str = "a gate that depends on the input"

    def __init__(self, base: nn.Linear, config: LowRankSettings, target: Target):
        super().__init__(base, config, target)
        self.gate = Gate(len(self.slices), self.in_features, base.weight)
        self.gate.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, .., in) -> (batch, .., out)."""
        out = F.linear(x, self.matrix, self.bias)
        if self.disabled:
            return out
        a, b = self.factors()
        hidden = F.linear(self.dropout(x), a.to(x.dtype)).unflatten(-1, (len(self.slices), -1))
        hidden = (hidden * self.gate(x).unsqueeze(-1)).flatten(-2).flatten(0, -2)
        return out + padded_deltas(hidden, b.to(hidden.dtype), self.slices, self.out_features).view(out.shape)

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        return [*super().macs(needs_gradient), *self.gate.macs(needs_gradient)]


class GatedBottleneck(Bottleneck):
    """gate * bottleneck."""

    def __init__(self, config: Any, path: str, width: int, weight: Tensor):
        super().__init__(config, path, width, weight)
        self.gate = Gate(1, width, weight)

    def forward(self, h: Tensor) -> Tensor:
        """h (batch, .., width) -> the same shape."""
        return self.gate(h) * super().forward(h)

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        return [*super().macs(needs_gradient), *self.gate.macs(needs_gradient)]


class GatedPrefix(Prefix):
    """A prefix whose keys and values a gate multiplies, before the softmax."""

    def __init__(self, config: Any, path: str, width: int, weight: Tensor):
        super().__init__(config, path, width, weight)
        self.gate = Gate(1, weight.shape[-1], weight)

    def gate_of(self, x: Tensor) -> Tensor:
        return self.gate(x).view(-1, 1, 1, 1)

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        return [*super().macs(needs_gradient), *self.gate.macs(needs_gradient)]


class GatedPrefixTuning(PrefixTuning):
    def make_prefix(self, path: str, width: int, weight: Tensor) -> GatedPrefix:
        return GatedPrefix(self, path, width, weight)


class GatedPAdapter(PAdapter):
    def make_adapter(self, path: str, width: int, weight: Tensor) -> GatedBottleneck:
        return GatedBottleneck(self, path, width, weight)


class GatedLoRA(LoRA):
    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: GatedLinear}


@register_method("unipelt-ap", capaboost_unipelt_ap=TIED, unipelt_ap=PLAIN)
class UniPELTAP(TyingSettings, Method):
    """A prefix before the keys and values of each attention, and PAdapter, each multiplied by a gate of the example.

    A block has 2 * width * (prefix_length + bottleneck) entries of matrices, and for gates and biases 3 * width +
    bottleneck + 2. Sizes are the authors' for BERT-base (run_glue.py:199-222@53d3c35, and the 1.1 M of the paper's
    UniPELT(AP) give a bottleneck of 48); their prefix comes from an MLP in training.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = PrefixTuning.layers
    layers_from_integration: ClassVar[bool] = True
    recipe: ClassVar[str] = "padapter"
    budget: ClassVar[str | None] = "bottleneck"
    starts_as_base: ClassVar[bool] = False

    prefix_length: int = Field(
        default=10, ge=1, le=65536, description="Keys and values before those of each attention."
    )
    bottleneck: int = Field(default=48, ge=1, le=65536, description="Width of the adapter's bottleneck.")

    def parts(self) -> list[Method]:
        """The methods side by side; an attention comes before the layers within it, which it adopts."""
        adapter = GatedPAdapter(r=self.bottleneck, init="official", scaling="alpha-r", **self.tying())
        return [GatedPrefixTuning(r=self.prefix_length, **self.tying()), adapter]

    def tying(self) -> dict[str, Any]:
        """The settings of sharing that were given."""
        return {name: getattr(self, name) for name in TyingSettings.model_fields if name in self.model_fields_set}

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        targets = [target for part in self.parts() for target in part.plan(model, roles).targets]
        return Plan(tuple(targets), roles.head, roles.required_flags)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """The layers of all parts: each block has one target of the first part, and one of the last."""
        known = [type(modules.get(target.path)) in PrefixTuning.layers for target in plan.targets]
        blocks = max(1, sum(known))  # the prefix refuses an attention that it has no form for
        bounds = [0, blocks, len(plan.targets) - blocks, len(plan.targets)]
        first, between, last = (plan.targets[start:stop] for start, stop in pairwise(bounds))
        prefix, *lora, adapter = self.parts()
        pairs = [(prefix, first), *((part, between) for part in lora), (adapter, last)]
        made = [part.make_layers(modules, Plan(targets)) for part, targets in pairs]
        return {path: layer for layers in made for path, layer in layers.items()}


@register_method("unipelt", capaboost_unipelt=TIED, unipelt=PLAIN)
class UniPELT(UniPELTAP):
    """UniPELT(AP), and LoRA on q and v with a gate each in place of alpha / r.

    A block has 4 * width * r + 2 * width + 2 more parameters; the authors have r = 8 for BERT-base.
    """

    r: int = Field(default=8, ge=1, le=65536, description="LoRA's rank.")

    def parts(self) -> list[Method]:
        prefix, adapter = super().parts()
        return [prefix, GatedLoRA(r=self.r, **self.tying()), adapter]
