"""UniPELT (Mao et al., 2022, arXiv 2110.07577): LoRA, prefix and adapter side by side, each behind a gate."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.methods.base import Method
from capaboost_core.methods.gates import GatedBottleneck, GatedLinear, GatedPrefix
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.padapter import PAdapter
from capaboost_core.methods.prefix import PrefixTuning
from capaboost_core.methods.registry import register_method
from capaboost_core.plan import Plan
from capaboost_core.roles import Roles
from capaboost_core.sharing.settings import PLAIN, TIED, Tying


class GatedPrefixTuning(PrefixTuning):
    def make_prefix(self, path: str, width: int, weight: Tensor) -> GatedPrefix:
        return GatedPrefix(self, path, width, weight)


class GatedPAdapter(PAdapter):
    def make_adapter(self, path: str, width: int, weight: Tensor) -> GatedBottleneck:
        return GatedBottleneck(self, path, width, weight)


class GatedLoRA(LoRA):
    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: GatedLinear}


@register_method("unipelt-ap", capaboost_unipelt_ap=TIED, unipelt_ap=PLAIN)
class UniPELTAP(Tying, Method):
    """A prefix before the keys and values of each attention, and PAdapter, each multiplied by a gate of the example.

    A block has 2 * width * (prefix_length + bottleneck) entries of matrices, and for gates and biases 3 * width +
    bottleneck + 2. Sizes are the authors' for BERT-base (run_glue.py:199-222@53d3c35, and the 1.1 M of the paper's
    UniPELT(AP) give a bottleneck of 48); their prefix comes from an MLP in training.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = PrefixTuning.layers
    integrated: ClassVar[bool] = True
    recipe: ClassVar[str] = "padapter"
    budget: ClassVar[str | None] = "bottleneck"
    starts_as_base: ClassVar[bool] = False

    prefix_length: int = Field(10, ge=1, le=65536, description="Keys and values before those of each attention.")
    bottleneck: int = Field(48, ge=1, le=65536, description="Width of the adapter's bottleneck.")

    def parts(self) -> list[Method]:
        """The methods side by side; an attention comes before the layers within it, which it adopts."""
        adapter = GatedPAdapter(r=self.bottleneck, init="official", scaling="alpha-r", **self.tying())
        return [GatedPrefixTuning(r=self.prefix_length, **self.tying()), adapter]

    def tying(self) -> dict[str, Any]:
        """The settings of sharing that were given."""
        return {name: getattr(self, name) for name in Tying.model_fields if name in self.model_fields_set}

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        targets = [target for part in self.parts() for target in part.plan(model, roles).targets]
        return Plan(tuple(targets), roles.head, roles.switches)

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

    r: int = Field(8, ge=1, le=65536, description="LoRA's rank.")

    def parts(self) -> list[Method]:
        prefix, adapter = super().parts()
        return [prefix, GatedLoRA(r=self.r, **self.tying()), adapter]
